"""``cnn-jobs reap``: runs whose process is gone."""

from __future__ import annotations

import click

from cnn_jobs.cli.options import option
from cnn_jobs.cli.tables import console, table


@click.command(context_settings={"show_default": True})
@option("experiment", default="cnn-jobs", help="Experiment in MLflow.")
@option("missing_ok", is_flag=True, default=False, help="An experiment that is not there (yet) has no such runs.")
def reap(experiment: str, missing_ok: bool) -> None:
    """Set runs to FAILED that MLflow shows as RUNNING though no process trains them.

    Looks twice, 60 seconds apart: a living run moves its heartbeat counter in that time.
    """
    from cnn_jobs.tracking.connection import tracking_uri
    from cnn_jobs.tracking.reap import reap as look_twice

    watched = look_twice(tracking_uri(), experiment, missing_ok=missing_ok, say=lambda text: click.echo(text, err=True))
    if not watched:
        click.echo(f"no run of experiment '{experiment}' is RUNNING")
        return
    listing = table("Run", "Key", "Attempt", "Now", unbroken=4)
    for each in watched:
        now = {"FAILED": "FAILED (lost)", "KILLED": "KILLED (cancelled)"}.get(each.status, each.status)
        listing.add_row(each.run.name, each.run.tags["cnn_jobs.run_key"], str(each.run.attempt), now)
    console().print(listing)
