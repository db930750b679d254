"""``cnn-jobs cancel``: a Job stopped, and its runs told so."""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import click
from rich.text import Text

from cnn_jobs.cli.console import console, table
from cnn_jobs.cli.options import env_name, option
from cnn_jobs.cluster.client import Cluster
from cnn_jobs.cluster.jobs import cancel as stop
from cnn_jobs.cluster.jobs import find_job
from cnn_jobs.cluster.logs import Follower, choose_job, present
from cnn_jobs.cluster.settings import Settings
from cnn_jobs.cluster.status import JobFacts, Line, jobs_and_pods, lines_of
from cnn_jobs.errors import TrackingError, UserError
from cnn_jobs.system.environment import in_pod
from cnn_jobs.tracking import names
from cnn_jobs.tracking.client import RemoteRun

Command = Callable[..., Any]


def cluster_options(command: Command) -> Command:
    """Adds ``--namespace`` and ``--context``."""
    command = option("context", default="", show_default="the present one", help="Context of the kubeconfig.")(command)
    return option("namespace", default=Settings.namespace, help="Namespace of the Jobs.")(command)


def next_command(name: str, job: str, namespace: str, context: str) -> str:
    """What to type about a Job, fit to be pasted."""
    elsewhere = f" --namespace {namespace}" if namespace != Settings.namespace else ""
    return f"cnn-jobs {name} {job}{elsewhere}{f' --context {context}' if context else ''}"


ASK_S = 10.0
FIGURES = (
    (names.VAL_ACCURACY, "val acc."),
    (names.BEST_TEST_ACCURACY, "best test"),
    (names.LAST_TEST_ACCURACY, "last test"),
)


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
    from cnn_jobs.tracking.cancellation import JobRuns

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
            runs |= {run.tags[names.RUN_KEY]: run for run in JobRuns(uri, job.uid, ASK_S).runs()}
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
        return str(int(json.loads(run.tags[names.COST])["useful"]["steps"])) if run else "-"
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
        elif reason := line.run.tags.get(names.REASON):
            found.append(f"{line.title}: {reason}")
        found.append(f"{line.title}: {run_url(tracking_uri(), line.run.experiment_id, line.run.run_id)}")
    return found


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
    from cnn_jobs.tracking.cancellation import JobRuns

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
