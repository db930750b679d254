"""``cnn-jobs cancel``: a Job stopped, and its runs told so."""

from __future__ import annotations

import getpass

import click

from cnn_jobs.cli.cluster_options import cluster_options
from cnn_jobs.cli.options import option
from cnn_jobs.cli.status import address, how_to_reach
from cnn_jobs.cluster.cancel import cancel as stop
from cnn_jobs.cluster.cancel import find_job
from cnn_jobs.cluster.client import Cluster
from cnn_jobs.errors import UserError


@click.command(context_settings={"show_default": True})
@click.argument("job")
@option("timeout", type=click.FloatRange(min=0), default=120.0, help="Seconds to wait until the Job's pods are gone.")
@cluster_options
def cancel(job: str, timeout: float, namespace: str, context: str) -> None:
    """Stop JOB for good: its runs are KILLED and cancelled in MLflow, with their last checkpoint.

    MLflow (MLFLOW_TRACKING_URI) is told first: an attempt that is stopped then
    keeps the word, and one that starts ends at once. A run that is finished, or
    failed by itself, stays what it is.
    """
    from cnn_jobs.tracking.cancel import JobRuns

    cluster = Cluster(namespace, context)
    found = find_job(cluster, job)
    if found.over:
        click.echo(f"Job {job} is over ({found.state}): there is nothing to cancel")
        return
    runs = None
    if found.records:
        uri = address(namespace)
        if not uri:
            raise UserError(f"MLFLOW_TRACKING_URI is not set, and MLflow has to hear of it: {how_to_reach(namespace)}")
        runs = JobRuns(uri, found.uid)
    reason = f"cancelled by {_user()}"
    settled = stop(cluster, found, runs, reason, timeout, lambda text: click.echo(text, err=True))
    click.echo(f"Job {job} is gone")
    if found.records and not settled:
        click.echo("MLflow has no run of it: it was cancelled before it began")
    for run in settled:
        state = f", {run.state}" if run.state != run.status.lower() else ""
        kept = "its checkpoint is in MLflow" if run.has_checkpoint else "no checkpoint of it is in MLflow"
        click.echo(f"run {run.name} ({run.key}): {run.status}{state}; {kept}\n  {run.url}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a numeric user of a container has no name
        return "a user without a name"
