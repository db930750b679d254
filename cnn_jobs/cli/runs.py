"""``cnn-jobs runs``: the runs of an experiment, side by side."""

from __future__ import annotations

import click

from cnn_jobs.cli.options import option
from cnn_jobs.cli.tables import console, table
from cnn_jobs.tasks import get_task

FIGURES = (
    "last/train_accuracy",
    "last/val_accuracy",
    "last/test_accuracy",
    "best/val_accuracy",
    "best/test_accuracy",
)


@click.command(context_settings={"show_default": True})
@option("experiment", default="cnn-jobs", help="Experiment in MLflow.")
@option("task", default="", help="Only runs of this task.")
def runs(experiment: str, task: str) -> None:
    """Compare the runs of an experiment: state, accuracies of the last and the best model, cost."""
    if task:
        get_task(task)
    from cnn_jobs.tracking.connection import tracking_uri
    from cnn_jobs.tracking.query import runs_of

    rows = runs_of(tracking_uri(), experiment, task)
    figures = ("last train", "last val", "last test", "best val", "best test", "device s")
    listing = table("Run", "Data", "State", right=(*figures, "Run id"), unbroken=3)
    for row in rows:
        cells = [f"{row.metrics[name]:.4f}" if name in row.metrics else "-" for name in FIGURES]
        seconds = row.metrics.get("ledger/device_seconds")
        cells.append("-" if seconds is None else f"{seconds:.0f}")
        state = row.tags.get("cnn_jobs.state", row.status.lower())
        listing.add_row(row.name, row.tags.get("cnn_jobs.data", "-"), state, *cells, row.run_id[:8])
    out = console()
    out.print(listing)
    out.print(f"{len(rows)} runs in experiment '{experiment}'; accuracies of the last and of the best model.")
