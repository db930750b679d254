"""The finding of a check: its status, what was found, and what to do."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cnn_jobs.errors import CnnJobsError
from cnn_jobs.system.redaction import redact

OK, WARNING, FAILED, SKIPPED = "ok", "warning", "failed", "skipped"


@dataclass(frozen=True)
class Finding:
    """The result of one check. ``found``: the facts; ``advice``: what to do, "" if nothing."""

    check: str
    status: str
    found: str
    advice: str = ""

    def of(self, check: str) -> Finding:
        """The same under a check's name, with each text on one line and without secrets."""
        return replace(self, check=check, found=presentable(self.found), advice=presentable(self.advice))


def ok(found: str) -> Finding:
    """Nothing is wrong."""
    return Finding("", OK, found)


def warning(found: str, advice: str) -> Finding:
    """A training works, but not as well or not as long as it could."""
    return Finding("", WARNING, found, advice)


def failed(found: str, advice: str) -> Finding:
    """A training would not work."""
    return Finding("", FAILED, found, advice)


def skipped(why: str) -> Finding:
    """There is nothing to check, or no way to."""
    return Finding("", SKIPPED, why)


class SkippedError(Exception):
    """Raised by a check that cannot run; the text is the reason."""


def from_error(error: CnnJobsError, advice: str) -> Finding:
    """A failure from an error message, which usually ends with what to do; ``advice`` if it does not."""
    found, separator, own_advice = str(error).rpartition("; ")
    return failed(found, own_advice) if separator else failed(str(error), advice)


def presentable(text: str) -> str:
    """``text`` on one line, with stars for passwords, keys and signatures."""
    return redact(" ".join(text.split()))
