"""``cnn-jobs logs``: what the pods of a Job say."""

from __future__ import annotations

import sys

import click

from cnn_jobs.cli.cluster_options import cluster_options
from cnn_jobs.cli.options import env_name, option
from cnn_jobs.cluster.client import Cluster
from cnn_jobs.cluster.logs import Follower, choose_job, present
from cnn_jobs.errors import UserError

# As a shell says it of a program that Ctrl-C ended.
INTERRUPTED = 130


@click.command(context_settings={"show_default": True})
@click.argument("job")
@click.option(
    "--follow",
    "-f",
    is_flag=True,
    envvar=env_name("follow"),
    show_envvar=True,
    help="Go on, from pod to pod, until the Job is over.",
)
@option("index", type=click.IntRange(min=0), default=None, show_default="all", help="Only this index of the Job.")
@option(
    "all_attempts", is_flag=True, default=False, help="Not only the last pod: all that are there, the oldest first."
)
@cluster_options
def logs(job: str, follow: bool, index: int | None, all_attempts: bool, namespace: str, context: str) -> None:
    """Show the log of JOB: of its last pod, or of the last one of each index.

    \b
    With -f it waits for a pod that is not there yet, goes on with the pod of the
    next attempt, gets over a broken connection, and ends with exit code 0 when
    the Job is over, however that ended ('cnn-jobs status' says how). Ctrl-C ends
    it, not the Job. Where a Job has several indexes each line begins with its.
    """
    if follow and all_attempts:
        raise UserError("--follow begins with the pods that are there, all of them; leave --all-attempts out")
    try:
        cluster = Cluster(namespace, context)
        found = choose_job(cluster, job, index)
        prefixed = found.indexes > 1 and index is None
        follower = Follower(cluster, found, index, lambda text: click.echo(text, err=True))
        for line in follower.lines() if follow else present(cluster, found, index, all_attempts=all_attempts):
            click.echo(f"[{line.index}] {line.text}" if prefixed else line.text)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
