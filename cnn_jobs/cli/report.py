"""``cnn-jobs report``: comparison tables, statistics and plots over the runs of an experiment."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from cnn_jobs.cli.console import console, table
from cnn_jobs.cli.options import env_name, option, state_dir_option
from cnn_jobs.errors import UserError
from cnn_jobs.report.formats import FORMATS
from cnn_jobs.tasks import get_task
from cnn_jobs.tracking import names

REDRAW_EVERY = 100


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
    show_default="what the course report asks",
    help="Compare these two as well: tasks, or groups as the report names them; repeatable.",
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
@option("log", is_flag=True, default=True, help="Keep the report in an MLflow run, too.")
@state_dir_option
def report(**given: Any) -> None:
    """Compare the runs of an experiment: many seeds, honest intervals, no winner where there is none.

    Only finished runs count; the others are listed with the reason. Runs are grouped by recipe and data, seeds apart.
    """
    for name in given["task"]:
        get_task(name)
    since_ms = parse_since(given["since"])

    from cnn_jobs.report.report import ReportRequest, make_report
    from cnn_jobs.report.statistics import estimate
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
    with ReadingProgress() as progress:
        made = make_report(request, progress)
    out = console()
    for section in made.sections:
        listing = table("Task", right=("n", "last test acc., %", "95 % interval"), title=section.name, unbroken=1)
        for group in section.groups:
            found = estimate(list(group.values(names.LAST_TEST_ACCURACY).values()))
            interval = (
                "-" if found.low is None or found.high is None else f"{100 * found.low:.2f} to {100 * found.high:.2f}"
            )
            listing.add_row(group.label, str(found.n), f"{100 * found.mean:.2f}", interval)
        out.print(listing)
    if made.aside:
        out.print(f"{len(made.aside)} runs do not count; the report says why.")
    for path in [each for each in made.files if each.parent.name != "plots"]:
        out.print(f"  {path}", markup=False)
    if made.where:
        out.print(f"In MLflow: {made.where}", markup=False, soft_wrap=True)


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


class ReadingProgress:
    """A bar on a terminal, a line for every hundred runs elsewhere; both on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._done = self._count = 0
        self._what = ""

    def __enter__(self) -> ReadingProgress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def begin(self, what: str, count: int) -> None:
        """``count`` steps of ``what`` follow."""
        self._what, self._count, self._done = what, count, 0
        if self._bar:
            self._task = self._bar.add_task(what, total=count)

    def step(self) -> None:
        """One is done."""
        self._done += 1
        if self._bar:
            self._bar.advance(self._task)
        elif self._done % REDRAW_EVERY == 0:
            click.echo(f"{self._what}: {self._done:,} of {self._count:,}", err=True)
