"""The result of a run that was finished before."""

from __future__ import annotations

from cnn_jobs.attempt import Attempt
from cnn_jobs.run import Run, RunResult
from cnn_jobs.tracking.connection import run_url


def finished_result(run: Run, attempt: Attempt, steps_per_epoch: int) -> RunResult:
    """Reads the result back from MLflow: nothing is trained and nothing is changed."""
    there = attempt.remote_run
    assert there
    rows = attempt.remote.history(there.run_id, "last/test_loss")
    steps = rows[-1].step if rows else 0
    return RunResult(
        run_id=there.run_id,
        url=run_url(attempt.remote.uri, there.experiment_id, there.run_id),
        name=there.name,
        recipe=run.recipe,
        metrics={name: value for name, value in there.metrics.items() if name.startswith(("best/", "last/"))},
        steps=steps,
        stopped_early=steps < steps_per_epoch * run.recipe.epochs,
        seconds=there.metrics.get("ledger/wall_seconds", 0.0),
        note="finished before; nothing was trained",
    )
