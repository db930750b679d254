"""``cnn-jobs report``: comparison tables, statistics and plots over the runs of an experiment."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from cnn_jobs.cli.console import PlainConsole, console, table
from cnn_jobs.cli.options import env_name, option, state_dir_option
from cnn_jobs.errors import UserError
from cnn_jobs.report.formats import FORMATS
from cnn_jobs.tasks import get_task
from cnn_jobs.tracking import names

REPORT_EVERY = 100


@click.command(context_settings={"show_default": True})
@option("experiment", default="cnn-jobs", help="Experiment in MLflow.")
@option("task", multiple=True, show_default="all", help="Only runs of this task; repeatable.")
@option(
    "since",
    default="",
    show_default="always",
    help="Only runs started then or later (UTC): 2026-11-24 or 2026-11-24T09:30.",
)
@click.option(
    "--compare",
    nargs=2,
    multiple=True,
    metavar="A B",
    envvar=env_name("compare"),
    show_envvar=True,
    show_default="the course report's questions",
    help="Also compare these two tasks, or groups by their name in the report; repeatable.",
)
@option(
    "out",
    type=click.Path(path_type=Path, file_okay=False),
    default="report",
    help="Folder for report.html, report.md, tables.csv, report.json and plots/.",
)
@option(
    "format",
    multiple=True,
    type=click.Choice(FORMATS),
    show_default="all four",
    help="Which files to write; repeatable.",
)
@option("log", is_flag=True, default=True, help="Store the report in an MLflow run as well.")
@state_dir_option
def report(**given: Any) -> None:
    """Compare the runs of an experiment: many seeds, honest intervals, no winner without evidence.

    Only finished runs count; the others are listed with the reason. Runs are grouped by recipe and data; a group
    averages over seeds.
    """
    for name in given["task"]:
        get_task(name)
    since_ms = parse_since(given["since"])

    from cnn_jobs.report.report import ReportRequest, make_report
    from cnn_jobs.tracking.connection import tracking_uri

    request = ReportRequest(
        tracking_uri=tracking_uri(),
        experiment=given["experiment"],
        tasks=tuple(given["task"]),
        since_ms=since_ms,
        compare=tuple(given["compare"]),
        out=given["out"],
        formats=given["format"] or FORMATS,
        log=given["log"],
        state_dir=given["state_dir"],
    )
    with progress_on_stderr() as progress:
        result = make_report(request, progress)
    out = console()
    for section in result.sections:
        listing = table("Task", right=("n", "last test acc., %", "95 % interval"), title=section.name, unbroken=1)
        for group in section.groups:
            found = group.estimate(names.LAST_TEST_ACCURACY)
            listing.add_row(group.label, str(found.n), f"{100 * found.mean:.2f}", found.interval_in_percent)
        out.print(listing)
    if result.aside:
        out.print(f"{len(result.aside)} runs do not count; the report has the reasons.")
    for path in [each for each in result.files if each.parent.name != "plots"]:
        out.print(f"  {path}", markup=False)
    if result.where:
        out.print(f"In MLflow: {result.where}", markup=False, soft_wrap=True)


def parse_since(text: str) -> int:
    """Milliseconds since 1970 of a day or time in UTC, 0 for "". Raises ``UserError`` for anything else."""
    if not text:
        return 0
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"--since is '{text}', but must be a day or a time: 2026-11-24 or 2026-11-24T09:30") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


@contextmanager
def progress_on_stderr() -> Iterator[Callable[[str, int, int], None]]:
    """A function of what is read, how many are done and the total: a bar on a terminal, else a line per 100 runs."""

    def print_line(what: str, done: int, total: int) -> None:
        if done and done % REPORT_EVERY == 0:
            click.echo(f"{what}: {done:,} of {total:,}", err=True)

    if not sys.stderr.isatty():
        yield print_line
        return

    from rich.progress import Progress

    with Progress(console=PlainConsole(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
