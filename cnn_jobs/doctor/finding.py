"""What a check found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cnn_jobs.errors import CnnJobsError
from cnn_jobs.monitoring.secrets import redact

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
