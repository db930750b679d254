"""SIGTERM and SIGINT: a wish to stop, granted where nothing is lost by it. Imports nothing heavy: the handler must be
in place before torch is imported."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cnn_jobs.errors import InterruptedRunError


class StopRequest:
    """Whether a signal has asked this process to stop.

    Outside ``deferred`` the first signal raises ``InterruptedRunError`` right where the main thread is; inside it is
    only noted, and a later signal never breaks what the first one began.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._deferred = False

    def install(self) -> None:
        """Takes over SIGTERM and SIGINT; call it in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def requested(self) -> bool:
        """Whether a signal has come."""
        return bool(self.signal_name)

    def check(self) -> None:
        """Raises ``InterruptedRunError`` if a signal has come."""
        if self.requested():
            raise InterruptedRunError(f"stopped by {self.signal_name}")

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it a signal is noted and nothing more."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first = not self.requested()
        self.signal_name = self.signal_name or signal.Signals(number).name
        if first and not self._deferred:
            self.check()
