"""A question asked once, whose answer several checks wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class NoAnswerError(Exception):
    """The answer did not come in time."""


class Shared(Generic[Result]):
    """The result, or the error, of one call in a thread of its own, which holds up no exit."""

    def __init__(self, ask: Callable[[], Result]) -> None:
        self._ask = ask
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._call, daemon=True)
        self._starting = threading.Lock()
        self._result: list[Result] = []
        self._error: Exception | None = None

    def get(self, limit_s: float) -> Result:
        """Waits for the result. Raises ``NoAnswerError`` after ``limit_s``, and what the call raised."""
        with self._starting:
            if self._thread.ident is None:
                self._thread.start()
        if not self._done.wait(limit_s):
            raise NoAnswerError(f"no answer within {limit_s:.0f} s")
        if self._error is not None:
            raise self._error
        return self._result[0]

    def _call(self) -> None:
        try:
            self._result.append(self._ask())
        except Exception as error:
            self._error = error
        finally:
            self._done.set()
