"""SIGTERM, SIGHUP and SIGINT as requests to stop, honoured where nothing is lost.

Imports nothing heavy: the handler must be installed before torch is imported.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cnn_jobs.errors import CnnJobsError, InterruptedRunError, StoppedError, ThreadError

# From SIGTERM to the end of the process, at most: GKE Spot allows 15 s, other clusters usually 30.
LIMIT_S = 8.0
# Always left for a last step, however late it is.
LEAST_S = 0.5


def _terminating() -> list[signal.Signals]:
    """SIGTERM, and SIGHUP of a terminal or connection that closes, unless ``nohup`` made this process ignore it."""
    return [signal.SIGTERM, *([signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else [])]


def exit_on_sigterm(limit_s: float = LIMIT_S) -> None:
    """Makes SIGTERM and SIGHUP raise ``StoppedError`` in the main thread and end the process with exit code 1 within
    ``limit_s`` seconds, whatever it still waits for. Call it in the main thread.

    For commands that start over when they are called again. Process 1 of a container ignores a SIGTERM without a
    handler and would be killed at the end of the grace period. ``StopRequest.install`` replaces this handler.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in _terminating():
            signal.signal(each, lambda number, frame: None)  # a second signal must not interrupt the first
        timer = threading.Timer(limit_s, os._exit, (CnnJobsError.exit_code,))
        timer.daemon = True
        timer.start()
        raise StoppedError(f"stopped by {signal.Signals(number).name}")

    for number in _terminating():
        signal.signal(number, stop)


class StopRequest:
    """Whether this process has to stop, because a signal arrived or one of its threads died.

    Unmasked, the first signal raises ``InterruptedRunError`` in the main thread; masked, it is only recorded. Later
    signals are ignored: they never interrupt what the first one started.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self.thread_error: CnnJobsError | None = None
        self._signalled_at = 0.0
        self._in_mask = self._mask_set = False
        self._previous_hook = threading.excepthook

    def install(self) -> None:
        """Handles SIGTERM, SIGHUP, SIGINT and uncaught errors of threads from now on; call it in the main thread."""
        for number in (*_terminating(), signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._previous_hook, threading.excepthook = threading.excepthook, self._on_thread_error

    def requested(self) -> bool:
        """Whether to stop."""
        return bool(self.signal_name) or self.thread_error is not None

    def check(self) -> None:
        """Raises ``InterruptedRunError`` after a signal, ``ThreadError`` after the death of a thread."""
        if self.thread_error:
            raise self.thread_error
        if self.signal_name:
            raise InterruptedRunError(f"stopped by {self.signal_name}")

    @contextmanager
    def masked(self) -> Iterator[None]:
        """Masks signals within the context."""
        before, self._in_mask = self._in_mask, True
        try:
            yield
        finally:
            self._in_mask = before

    def mask(self) -> None:
        """Masks signals until ``unmask``, also outside of ``masked``: the work is done, and the rest takes no time."""
        self._mask_set = True

    def unmask(self) -> None:
        """Ends ``mask``, before other work begins."""
        self._mask_set = False

    def seconds_left(self, total_s: float) -> float:
        """What remains of ``total_s`` seconds after the signal, at least ``LEAST_S``; all of them without a signal."""
        spent = time.monotonic() - self._signalled_at if self.signal_name else 0.0
        return max(LEAST_S, total_s - spent)

    def record(self, number: int) -> None:
        """Records a signal that arrived now; ``seconds_left`` counts from here."""
        self._signalled_at = time.monotonic()
        self.signal_name = signal.Signals(number).name

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name:
            return
        self.record(number)
        if not (self._in_mask or self._mask_set):
            self.check()

    def _on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread else "unknown"
        error = ThreadError(f"thread {name} died of {args.exc_type.__name__}: {args.exc_value}")
        self.thread_error = self.thread_error or error
        self._previous_hook(args)
