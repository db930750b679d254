"""An error, as the command line tells it."""

from __future__ import annotations

from collections.abc import Callable

import click

from cnn_jobs.errors import CnnJobsError, StoppedError


def _on_stderr(line: str) -> None:
    click.echo(line, err=True)


def tell(error: CnnJobsError | StoppedError, say: Callable[[str], object] = _on_stderr) -> None:
    """One line on stderr, or wherever ``say`` puts it, and one for each note that it carries."""
    for line in [f"error: {error}", *getattr(error, "__notes__", ())]:
        say(line)
