"""``python -m cnn_jobs.local_server start|stop|status|url``, for the Makefile."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from cnn_jobs.errors import CnnJobsError
from cnn_jobs.local_server.server import running_server, start_server, stop_server

_dir_option = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=".local",
    show_default=True,
    help="Database, artifacts, log and record of the server.",
)


@click.group()
def main() -> None:
    """An MLflow server on this machine, with sqlite and a local folder."""


@main.command()
@_dir_option
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=5000,
    show_default=True,
    help="First port to try; 0: any free one.",
)
def start(directory: Path, port: int) -> None:
    """Start the server, or find the running one; returns when it answers."""
    began = time.monotonic()
    server = start_server(directory, port, notify=click.echo)
    click.echo(f"MLflow answers at {server.url} ({time.monotonic() - began:.1f} s)")


@main.command()
@_dir_option
def stop(directory: Path) -> None:
    """Stop the server and its workers."""
    stop_server(directory, notify=click.echo)


@main.command()
@_dir_option
def status(directory: Path) -> None:
    """Show whether the server runs and answers."""
    server = running_server(directory)
    if server is None:
        click.echo(f"no MLflow server runs in {directory}")
    else:
        state = "answers" if server.answers() else "does not answer"
        click.echo(f"{server.url} {state} (pid {server.pid}, log {directory / 'server.log'})")


@main.command()
@_dir_option
def url(directory: Path) -> None:
    """Print only the server's URL; exit with 1 if none runs."""
    server = running_server(directory)
    if server is None:
        click.echo(f"no MLflow server runs in {directory}; start one with 'make local-run'", err=True)
        sys.exit(1)
    click.echo(server.url)


if __name__ == "__main__":
    try:
        main(prog_name="python -m cnn_jobs.local_server")
    except CnnJobsError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
