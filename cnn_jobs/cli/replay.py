"""``cnn-jobs replay``: send what a run has left in its folder."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cnn_jobs.cli.options import option


@click.command(context_settings={"show_default": True})
@click.argument("folder", type=click.Path(path_type=Path))
@option(
    "ship_deadline",
    type=click.FloatRange(min=0),
    default=60.0,
    help="Seconds to go on trying while MLflow does not answer.",
)
def replay(folder: Path, ship_deadline: float) -> None:
    """Send what is left of the run in FOLDER (DIR/<run_key>) to MLflow; nothing is trained.

    As often as you like, also to another server (MLFLOW_TRACKING_URI): what is there already is not doubled. Ends with
    exit code 75 while MLflow stays away, 1 where it refused something.
    """
    from cnn_jobs.tracking.connection import tracking_uri
    from cnn_jobs.tracking.replay import replay as send

    done = send(folder, tracking_uri(), ship_deadline)
    for line in done.damage:
        click.echo(f"warning: {line}; what is whole was sent", err=True)
    status = done.status or "RUNNING, as before: its last attempt ended without a word"
    click.echo(
        f"run {done.run_key}: {done.records} records of its journal are in MLflow; status {status}\n  {done.url}"
    )
    if not done.status:
        click.echo(
            f"Go on with the command that began it and --run-key {done.run_key}, or close it with 'cnn-jobs reap'."
        )
    if done.rejected:
        click.echo(f"error: {done.rejected}", err=True)
        sys.exit(1)
