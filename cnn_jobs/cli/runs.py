"""``cnn-jobs runs``, ``replay``, ``reap`` and ``reproduce``: commands on existing runs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cnn_jobs.cli.console import console, table
from cnn_jobs.cli.options import option
from cnn_jobs.system.process import keep_freed_memory, limit_spinning
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tasks import get_task
from cnn_jobs.tracking import names

SHOWN = 5
FIGURES = (
    names.LAST_TRAIN_ACCURACY,
    names.LAST_VAL_ACCURACY,
    names.LAST_TEST_ACCURACY,
    names.BEST_VAL_ACCURACY,
    names.BEST_TEST_ACCURACY,
)


@click.command(context_settings={"show_default": True})
@option("experiment", default="cnn-jobs", help="Experiment in MLflow.")
@option("task", default="", help="Only runs of this task.")
def runs(experiment: str, task: str) -> None:
    """Compare the runs of an experiment: state, accuracies of the last and the best model, cost."""
    if task:
        get_task(task)
    from cnn_jobs.tracking.connection import tracking_uri
    from cnn_jobs.tracking.run_reader import runs_of

    rows = runs_of(tracking_uri(), experiment, task)
    figures = ("last train", "last val", "last test", "best val", "best test", "device s")
    listing = table("Run", "Data", "State", right=(*figures, "Run id"), unbroken=3)
    for row in rows:
        cells = [f"{row.metrics[name]:.4f}" if name in row.metrics else "-" for name in FIGURES]
        seconds = row.metrics.get(names.DEVICE_SECONDS)
        cells.append("-" if seconds is None else f"{seconds:.0f}")
        state = row.tags.get(names.STATE, row.status.lower())
        listing.add_row(row.name, row.tags.get(names.DATA, "-"), state, *cells, row.run_id[:8])
    out = console()
    out.print(listing)
    count = "1 run" if len(rows) == 1 else f"{len(rows)} runs"
    out.print(f"{count} in experiment '{experiment}'; accuracies of the last and of the best model.")


@click.command(context_settings={"show_default": True})
@click.argument("folder", type=click.Path(path_type=Path))
@option(
    "ship_deadline",
    type=click.FloatRange(min=0),
    default=60.0,
    help="Seconds to keep trying while MLflow does not answer.",
)
def replay(folder: Path, ship_deadline: float) -> None:
    """Send the records of the run in FOLDER (DIR/<run_key>) that MLflow lacks; nothing is trained.

    Repeat it as often as you like, also with another server (MLFLOW_TRACKING_URI): nothing is duplicated. Exit code 75
    means that MLflow does not answer, 1 that it refused something.
    """
    from cnn_jobs.tracking.connection import tracking_uri
    from cnn_jobs.tracking.replay import replay as send

    done = send(folder, tracking_uri(), ship_deadline)
    for line in done.damage:
        click.echo(f"warning: {line}; the rest was sent", err=True)
    status = done.status or "RUNNING, as before: its last attempt was killed"
    click.echo(
        f"run {done.run_key}: {done.records} records of its journal are in MLflow; status {status}\n  {done.url}"
    )
    if not done.status:
        click.echo(
            f"Continue it with the command that started it and --run-key {done.run_key}, or close it: 'cnn-jobs reap'."
        )
    if done.rejected:
        click.echo(f"error: {done.rejected}", err=True)
        sys.exit(1)


@click.command(context_settings={"show_default": True})
@option("experiment", default="cnn-jobs", help="Experiment in MLflow.")
@option("missing_ok", is_flag=True, default=False, help="An experiment that does not exist (yet) has no such runs.")
def reap(experiment: str, missing_ok: bool) -> None:
    """Set runs to FAILED that MLflow shows as RUNNING although no process trains them.

    Looks twice, 60 seconds apart: a live run increments its heartbeat counter in that time.
    """
    from cnn_jobs.tracking.connection import tracking_uri
    from cnn_jobs.tracking.reap import reap as look_twice

    watched = look_twice(
        tracking_uri(), experiment, missing_ok=missing_ok, report=lambda text: click.echo(text, err=True)
    )
    if not watched:
        click.echo(f"no run of experiment '{experiment}' is RUNNING")
        return
    listing = table("Run", "Key", "Attempt", "Now", unbroken=4)
    for each in watched:
        now = {"FAILED": "FAILED (lost)", "KILLED": "KILLED (cancelled)"}.get(each.status, each.status)
        listing.add_row(each.run.name, each.run.tags[names.RUN_KEY], str(each.run.attempt), now)
    console().print(listing)


@click.command(context_settings={"show_default": True})
@click.argument("run_id")
@option("data", default="", show_default="where the run had it", help="The run's data set, if it has moved.")
def reproduce(run_id: str, data: str) -> None:
    """Train the finished run RUN_ID again from its recorded recipe, seed and data, and compare the two.

    Nothing is recorded. Exit code 0 means that every metric row, the weights and the optimiser state are bit-identical,
    1 that they differ, 2 that they cannot be identical (other data, packages or machine), with the reason.
    """
    stop = StopRequest()
    stop.install()
    limit_spinning()
    keep_freed_memory()
    from cnn_jobs.cli.console import progress_observer
    from cnn_jobs.runs.reproduce import reproduce as train_again
    from cnn_jobs.tracking.connection import tracking_uri

    comparisons = train_again(tracking_uri(), run_id, data, progress_observer(), stop)
    listing = table("Compared", right=("values", "differing"), unbroken=1)
    for each in comparisons:
        listing.add_row(each.what, f"{each.compared:,}", f"{len(each.differences):,}")
    console().print(listing)
    differing = [each for each in comparisons if each.differences]
    for each in differing:
        more = f" and {len(each.differences) - SHOWN} more" if len(each.differences) > SHOWN else ""
        click.echo(f"{each.what}: {'; '.join(each.differences[:SHOWN])}{more}")
    click.echo(f"run {run_id}: {'NOT identical' if differing else 'identical'}")
    sys.exit(1 if differing else 0)
