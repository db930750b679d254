"""What a check found, and what to do about it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from cnn_jobs.errors import CnnJobsError
from cnn_jobs.system.redaction import redact

OK, WARNING, FAILED, SKIPPED = "ok", "warning", "failed", "skipped"


@dataclass(frozen=True)
class Finding:
    """One line of the examination. ``found``: what there is, exactly; ``advice``: what to do, "" where all is well."""

    check: str
    status: str
    found: str
    advice: str = ""

    def of(self, check: str) -> Finding:
        """The same under a check's name: each text on one line, and without secrets."""
        return replace(self, check=check, found=presentable(self.found), advice=presentable(self.advice))


def ok(found: str) -> Finding:
    """All is well."""
    return Finding("", OK, found)


def warning(found: str, advice: str) -> Finding:
    """A training works, but not as it could, or not for long."""
    return Finding("", WARNING, found, advice)


def failed(found: str, advice: str) -> Finding:
    """A training would not work."""
    return Finding("", FAILED, found, advice)


def skipped(why: str) -> Finding:
    """There is nothing to check, or no way to."""
    return Finding("", SKIPPED, why)


def from_error(error: CnnJobsError, advice: str) -> Finding:
    """A failure in this project's own words, which end with what to do; ``advice`` where these do not."""
    found, parted, own_advice = str(error).rpartition("; ")
    return failed(found, own_advice) if parted else failed(str(error), advice)


def presentable(text: str) -> str:
    """``text`` on one line, with stars for passwords, keys and signatures."""
    return redact(" ".join(text.split()))


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
