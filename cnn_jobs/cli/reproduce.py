"""``cnn-jobs reproduce``: train again what a run recorded, and compare."""

from __future__ import annotations

import sys

import click

from cnn_jobs.cli.options import option
from cnn_jobs.cli.tables import console, table
from cnn_jobs.process import keep_freed_memory, limit_spinning
from cnn_jobs.stop import StopRequest

SHOWN = 5


@click.command(context_settings={"show_default": True})
@click.argument("run_id")
@option("data", default="", show_default="where the run had it", help="The run's data set, if it has moved.")
def reproduce(run_id: str, data: str) -> None:
    """Train the finished run RUN_ID again from its recorded recipe, seed and data, and compare the two.

    Nothing is recorded. Ends with exit code 0 where every metric row, the weights and the optimiser are the same in
    every bit, 1 where they differ, 2 where they cannot be the same (other data, packages or machine), saying why.
    """
    stop = StopRequest()
    stop.install()
    limit_spinning()
    keep_freed_memory()
    from cnn_jobs.cli.console import watcher
    from cnn_jobs.reproduce import reproduce as train_again
    from cnn_jobs.tracking.connection import tracking_uri

    comparisons = train_again(tracking_uri(), run_id, data, watcher(), stop)
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
