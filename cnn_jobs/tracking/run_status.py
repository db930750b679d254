"""How a run ends in MLflow, by what ended it."""

from __future__ import annotations

from cnn_jobs.errors import (
    AnotherAttemptError,
    CancelledRunError,
    CnnJobsError,
    DivergedError,
    InterruptedRunError,
    NotShippedError,
    StoppedError,
)
from cnn_jobs.tracking.records import CANCELLED, Ending, now_ms

# How an attempt can end, as seen from outside; all but the last two are a run's ``cnn_jobs.state``.
FINISHED, INTERRUPTED, FAILED, DIVERGED = "finished", "interrupted", "failed", "diverged"
UNSENT, SUPERSEDED = "unsent", "superseded"
STATES = (FINISHED, INTERRUPTED, FAILED, DIVERGED, CANCELLED, UNSENT, SUPERSEDED)


def finished() -> Ending:
    """The training is complete."""
    return Ending("FINISHED", FINISHED, "", now_ms())


def ending_of(error: BaseException) -> Ending | None:
    """KILLED after a signal, else FAILED, with the reason; ``None`` where the run is another attempt's by now, or was
    cancelled before this one."""
    if isinstance(error, AnotherAttemptError | CancelledRunError):
        return None
    reason = str(error) if isinstance(error, CnnJobsError | StoppedError) else f"{type(error).__name__}: {error}"
    if isinstance(error, InterruptedRunError | StoppedError | KeyboardInterrupt):
        return Ending("KILLED", INTERRUPTED, reason, now_ms())
    return Ending("FAILED", DIVERGED if isinstance(error, DivergedError) else FAILED, reason, now_ms())


def state_of(error: BaseException) -> str:
    """One of ``STATES``: ``unsent`` where all is trained but MLflow lacks a part, ``superseded`` by another attempt."""
    if isinstance(error, NotShippedError):
        return UNSENT
    if isinstance(error, CancelledRunError):
        return CANCELLED
    ending = ending_of(error)
    return ending.state if ending else SUPERSEDED
