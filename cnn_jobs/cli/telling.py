"""An error, as the command line tells it."""

from __future__ import annotations

import click

from cnn_jobs.errors import CnnJobsError, StoppedError


def tell(error: CnnJobsError | StoppedError) -> None:
    """One line on stderr, and one for each note that it carries."""
    for line in [f"error: {error}", *getattr(error, "__notes__", ())]:
        click.echo(line, err=True)
