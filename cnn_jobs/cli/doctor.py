"""``cnn-jobs doctor``: check everything that a training needs before it starts."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

import click

from cnn_jobs import __version__
from cnn_jobs.cli.options import option, state_dir_option
from cnn_jobs.tasks import get_task

if TYPE_CHECKING:
    from cnn_jobs.doctor.finding import Finding

COLOURS = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "bright_black"}


@click.command(context_settings={"show_default": True})
@option("data", default="cifar10", help="Data set, as for train.")
@option("task", default="", show_default="none", help="Task to be trained, whose pretrained weights are checked, too.")
@option("weights", default="", show_default="the task's", help="Pretrained weights, as for train.")
@option("experiment", default="cnn-jobs", help="Experiment in MLflow.")
@state_dir_option
@option("device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to train.")
@option("threads", type=click.IntRange(min=0), default=0, help="CPU threads; 0: as many as this process may use.")
@option("json", is_flag=True, default=False, help="One line of JSON in place of the table.")
def doctor(**given: Any) -> None:
    """Check data, weights, MLflow, S3, device, disk, clock and versions, and advise what to do.

    \b
    Takes the options and variables of train, and checks what train would use.
    Creates no run and no experiment, downloads nothing large, and deletes its
    test files; decoded pictures stay in the cache, as for train. Ends within
    30 seconds, with exit code 0, or 2 if a check has failed.
    """
    if given["task"]:
        get_task(given["task"])
    from cnn_jobs.doctor.examination import Subject, examine
    from cnn_jobs.tracking.connection import tracking_uri

    # Taken now: sys.stdout is replaced for a moment, in the whole process, to suppress torchvision's messages.
    out, as_json = sys.stdout, given.pop("json")
    # The findings replace the messages of packages.
    warnings.simplefilter("ignore")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    findings = examine(Subject(tracking_uri=tracking_uri(), **given))
    healthy = all(each.status != "failed" for each in findings)
    if as_json:
        content = {"ok": healthy, "checks": [asdict(each) for each in findings], "version": __version__}
        click.echo(json.dumps(content), file=out)
    else:
        show(findings, out)
    out.flush()
    sys.exit(0 if healthy else 2)


def show(findings: Sequence[Finding], out: TextIO) -> None:
    """The findings, a table on a terminal, else one line each, however long; below it what to do."""
    if out.isatty():
        _draw_table(findings, out)
    else:
        width = max(len(each.check) for each in findings)
        for each in findings:
            click.echo(f"{each.status:<8} {each.check:<{width}}  {each.found}", file=out)
        click.echo("", file=out)
    advised = [each for each in findings if each.advice]
    if advised:
        click.echo("What to do:", file=out)
    for number, each in enumerate(advised, start=1):
        # Not wrapped, so that commands can be copied.
        click.echo(f" {number}. {each.check}: {each.advice}", file=out)
    counts = Counter(each.status for each in findings)
    summary = ", ".join(f"{counts[status]} {status}" for status in COLOURS if counts[status])
    click.echo(f"{summary}{'' if counts['failed'] else '; a training can start'}", file=out)


def _draw_table(findings: Sequence[Finding], out: TextIO) -> None:
    from rich.text import Text

    from cnn_jobs.cli.console import PlainConsole, table

    listing = table("Result", "Check", "Found", unbroken=2)
    listing.columns[2].overflow = "fold"  # long paths are wrapped, not cut off
    for each in findings:
        listing.add_row(Text(each.status, style=COLOURS[each.status]), each.check, Text(each.found))
    PlainConsole(file=out).print(listing)
