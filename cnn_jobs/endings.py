"""How a run ends in MLflow, by what ended it."""

from __future__ import annotations

from cnn_jobs.errors import AnotherAttemptError, CnnJobsError, DivergedError, InterruptedRunError
from cnn_jobs.tracking.records import Ending, now_ms


def finished() -> Ending:
    """The training is complete."""
    return Ending("FINISHED", "finished", "", now_ms())


def ending_of(error: BaseException) -> Ending | None:
    """KILLED after a signal, else FAILED, with the reason; ``None`` where the run is another attempt's by now."""
    if isinstance(error, AnotherAttemptError):
        return None
    reason = str(error) if isinstance(error, CnnJobsError) else f"{type(error).__name__}: {error}"
    if isinstance(error, InterruptedRunError | KeyboardInterrupt):
        return Ending("KILLED", "interrupted", reason, now_ms())
    return Ending("FAILED", "diverged" if isinstance(error, DivergedError) else "failed", reason, now_ms())
