"""SIGTERM and SIGINT: a wish to stop, granted where nothing is lost by it. Imports nothing heavy: the handler must be
in place before torch is imported."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cnn_jobs.errors import CnnJobsError, InterruptedRunError, StoppedError, ThreadError

# From SIGTERM to the end, at most: whoever sent it waits 15 s on GKE Spot, else 30.
LIMIT_S = 8.0


def end_on_sigterm(limit_s: float = LIMIT_S) -> None:
    """From now on SIGTERM raises ``StoppedError`` in the main thread, and ends the process with exit code 1 after
    ``limit_s`` seconds, whatever it still waits for then; call it in the main thread.

    For commands that begin anew when they are called again. The first process of a container ignores a SIGTERM for
    which it has no handler: it would be killed at the end of the grace period. ``StopRequest`` takes this one's place.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: _end(limit_s))


def _end(limit_s: float) -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # a second one does not break the first
    last = threading.Timer(limit_s, os._exit, (CnnJobsError.exit_code,))
    last.daemon = True
    last.start()
    raise StoppedError("stopped by SIGTERM")


class StopRequest:
    """Whether this process has to stop: a signal has come, or a thread of it has died.

    Outside ``deferred`` the first signal raises ``InterruptedRunError`` right where the main thread is; inside it is
    only noted, and a later signal never breaks what the first one began.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self.fault: CnnJobsError | None = None
        self._signalled = 0.0
        self._deferred = self._held = False
        self._tell_thread_error = threading.excepthook

    def install(self) -> None:
        """Takes over SIGTERM, SIGINT and the end of threads by an error; call it in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._tell_thread_error, threading.excepthook = threading.excepthook, self._on_thread_error

    def requested(self) -> bool:
        """Whether to stop."""
        return bool(self.signal_name) or self.fault is not None

    def check(self) -> None:
        """Raises ``InterruptedRunError`` if a signal has come, ``ThreadError`` if a thread has died."""
        if self.fault:
            raise self.fault
        if self.signal_name:
            raise InterruptedRunError(f"stopped by {self.signal_name}")

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it a signal is noted and nothing more."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def hold(self) -> None:
        """From now on a signal is only noted: all is done, and what is left to say does not take long."""
        self._held = True

    def release(self) -> None:
        """The end of ``hold``: something new begins."""
        self._held = False

    def seconds_left(self, total_s: float) -> float:
        """Of ``total_s`` seconds after the signal; all of them where none has come. Half a second is always left."""
        spent = time.monotonic() - self._signalled if self.signal_name else 0.0
        return max(0.5, total_s - spent)

    def note(self, number: int) -> None:
        """A signal has come, now; the time that is left counts from here."""
        self._signalled = time.monotonic()
        self.signal_name = signal.Signals(number).name

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name:
            return
        self.note(number)
        if not self._deferred and not self._held:
            self.check()

    def _on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread else "unknown"
        self.fault = self.fault or ThreadError(f"thread {name} died of {args.exc_type.__name__}: {args.exc_value}")
        self._tell_thread_error(args)
