"""``cnn-jobs status``: Jobs, their pods and their runs in a table."""

from __future__ import annotations

import json
import os

import click
from rich.text import Text

from cnn_jobs.cli.cluster_options import cluster_options
from cnn_jobs.cli.tables import console, table
from cnn_jobs.cluster.cancel import find_job
from cnn_jobs.cluster.client import Cluster
from cnn_jobs.cluster.facts import JobFacts
from cnn_jobs.cluster.status import Line, jobs_and_pods, lines_of
from cnn_jobs.environment import in_pod
from cnn_jobs.errors import TrackingError
from cnn_jobs.tracking.remote import RemoteRun

ASK_S = 10.0
FIGURES = (("val/accuracy", "val acc."), ("best/test_accuracy", "best test"), ("last/test_accuracy", "last test"))


@click.command(context_settings={"show_default": True})
@click.argument("jobs", nargs=-1, metavar="[JOB]...")
@cluster_options
def status(jobs: tuple[str, ...], namespace: str, context: str) -> None:
    """Show each JOB, or all of cnn-jobs, with its pods and what MLflow has of its runs. The newest comes first.

    MLflow is the server of MLFLOW_TRACKING_URI; without it the table has no runs.
    """
    cluster = Cluster(namespace, context)
    named = [find_job(cluster, name) for name in dict.fromkeys(jobs)] if jobs else None
    found = jobs_and_pods(cluster, named)
    if not found:
        click.echo(f"no Job of cnn-jobs in namespace {namespace}")
        return
    runs = _runs([job for job, _ in found], namespace)
    lines = [line for job, pods in found for line in lines_of(job, pods, runs)]
    listing = table(
        "Job", "State", "Pod", "MLflow", right=("Pods", "Step", *(title for _, title in FIGURES)), unbroken=1
    )
    before = ""
    for line in lines:
        index = "" if line.index is None else f"  index {line.index}"
        if line.index is not None and line.job.name != before:
            listing.add_row(Text(line.job.name), Text(line.job.state))
        before = line.job.name
        first = (line.job.name, line.job.state) if line.index is None else (index, "")
        pod = line.pods[-1].text if line.pods else "-"
        cells = [*first, pod, _state(line.run), str(len(line.pods)), _step(line.run), *_figures(line.run)]
        listing.add_row(*map(Text, cells))
    out = console()
    out.print(listing)
    for text in dict.fromkeys(text for line in lines for text in _remarks(line)):
        out.print(Text(text), soft_wrap=True)


def address(namespace: str) -> str:
    """Where MLflow is, for somebody outside the cluster; "" where nobody said it."""
    from cnn_jobs.tracking.connection import tracking_uri

    # Not the database in the present folder: no pod ever wrote to that.
    return tracking_uri() if os.environ.get("MLFLOW_TRACKING_URI") or in_pod() else ""


def how_to_reach(namespace: str) -> str:
    """What to type, so that the MLflow of the stack can be asked."""
    return f"kubectl -n {namespace} port-forward service/mlflow 5000 & export MLFLOW_TRACKING_URI=http://127.0.0.1:5000"


def _runs(jobs: list[JobFacts], namespace: str) -> dict[str, RemoteRun]:
    """By key; none, and a line that says why, where MLflow cannot be asked."""
    from cnn_jobs.tracking.cancel import JobRuns

    uri = address(namespace)
    asked = [job for job in jobs if job.records]
    if not asked:
        return {}
    if not uri:
        click.echo(f"MLFLOW_TRACKING_URI is not set, runs are not shown: {how_to_reach(namespace)}", err=True)
        return {}
    runs: dict[str, RemoteRun] = {}
    try:
        for job in asked:
            runs |= {run.tags["cnn_jobs.run_key"]: run for run in JobRuns(uri, job.uid, ASK_S).runs()}
    except TrackingError as error:
        click.echo(f"runs are not shown: {error}", err=True)
    return runs


def _state(run: RemoteRun | None) -> str:
    if run is None:
        return "-"
    return f"{run.status}, {run.state}" if run.state and run.state != run.status.lower() else run.status


def _step(run: RemoteRun | None) -> str:
    """As its last heartbeat, or its end, had it."""
    try:
        return str(int(json.loads(run.tags["cnn_jobs.ledger"])["useful"]["steps"])) if run else "-"
    except (KeyError, ValueError, TypeError):
        return "-"


def _figures(run: RemoteRun | None) -> list[str]:
    return [f"{run.metrics[name]:.4f}" if run and name in run.metrics else "-" for name, _ in FIGURES]


def _remarks(line: Line) -> list[str]:
    """What does not fit into a cell: why, and where to look."""
    found = []
    if line.job.message:
        found.append(f"{line.job.name}: {line.job.message}")
    if line.pods and line.pods[-1].message:
        found.append(f"{line.pods[-1].name}: {line.pods[-1].message}")
    if line.run:
        from cnn_jobs.tracking.connection import run_url, tracking_uri

        if line.run.status == "RUNNING" and line.job.over:
            found.append(f"{line.title}: RUNNING in MLflow, but its Job is over; 'cnn-jobs reap' sets that right")
        elif reason := line.run.tags.get("cnn_jobs.reason"):
            found.append(f"{line.title}: {reason}")
        found.append(f"{line.title}: {run_url(tracking_uri(), line.run.experiment_id, line.run.run_id)}")
    return found
