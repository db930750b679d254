"""How a run or an attempt ended, by the error that ended it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cnn_jobs.errors import (
    AnotherAttemptError,
    CancelledRunError,
    CnnJobsError,
    DivergedError,
    InterruptedRunError,
    NotShippedError,
    RunMismatchError,
    StoppedError,
)
from cnn_jobs.tracking.records import now_ms

# Values of the tag ``cnn_jobs.state``. 'cnn-jobs cancel' sets CANCELLED, and attempts keep it.
FINISHED, INTERRUPTED, FAILED, DIVERGED, CANCELLED = "finished", "interrupted", "failed", "diverged", "cancelled"
# Of an attempt, not of a run: trained but not uploaded, and replaced by another attempt.
UNSENT, SUPERSEDED = "unsent", "superseded"
STATES = (FINISHED, INTERRUPTED, FAILED, DIVERGED, CANCELLED, UNSENT, SUPERSEDED)


@dataclass(frozen=True)
class RunStatus:
    """The end of a run: MLflow's status, the state, the reason, and when."""

    status: str
    state: str
    reason: str
    time_ms: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values for the journal."""
        return asdict(self)


def finished() -> RunStatus:
    """The status of a complete run that ends now."""
    return RunStatus("FINISHED", FINISHED, "", now_ms())


def status_after(error: BaseException) -> RunStatus | None:
    """KILLED after a signal, else FAILED, with the reason. ``None`` if this attempt must not set the run's status:
    another attempt owns the run, it was cancelled before, or the key's run is another one."""
    if isinstance(error, AnotherAttemptError | CancelledRunError | RunMismatchError):
        return None
    reason = str(error) if isinstance(error, CnnJobsError | StoppedError) else f"{type(error).__name__}: {error}"
    if isinstance(error, InterruptedRunError | StoppedError | KeyboardInterrupt):
        return RunStatus("KILLED", INTERRUPTED, reason, now_ms())
    return RunStatus("FAILED", DIVERGED if isinstance(error, DivergedError) else FAILED, reason, now_ms())


def state_after(error: BaseException) -> str:
    """The attempt's state, one of ``STATES``."""
    if isinstance(error, NotShippedError):
        return UNSENT
    if isinstance(error, CancelledRunError):
        return CANCELLED
    status = status_after(error)
    return status.state if status else SUPERSEDED
