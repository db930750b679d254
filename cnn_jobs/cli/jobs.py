"""``cnn-jobs status``, ``logs`` and ``cancel``: the Kubernetes Jobs of cnn-jobs with their MLflow runs."""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click
from rich.text import Text

from cnn_jobs.cli.console import console, table
from cnn_jobs.cli.manifests import namespace_option
from cnn_jobs.cli.options import env_name, option
from cnn_jobs.cluster import jobs as cluster_jobs
from cnn_jobs.cluster.client import Cluster
from cnn_jobs.cluster.logs import Follower, current_lines
from cnn_jobs.cluster.settings import Settings
from cnn_jobs.cluster.status import JobStatus, PodStatus, find_job, with_pods
from cnn_jobs.errors import TrackingError, UserError
from cnn_jobs.system.environment import in_pod
from cnn_jobs.tracking import names
from cnn_jobs.tracking.client import RemoteRun

Command = Callable[..., Any]
LOOK_UP_S = 10.0
METRICS = (
    (names.VAL_ACCURACY, "val acc."),
    (names.BEST_TEST_ACCURACY, "best test"),
    (names.LAST_TEST_ACCURACY, "last test"),
)
# A shell's exit code for a program that Ctrl-C ended.
INTERRUPTED = 130


def cluster_options(command: Command) -> Command:
    """Adds ``--namespace`` and ``--context``."""
    context = option("context", default="", show_default="the current one", help="Context of the kubeconfig.")
    return namespace_option(context(command))


def next_command(name: str, job: str, namespace: str, context: str) -> str:
    """A command about a Job, to be pasted into a shell."""
    elsewhere = f" --namespace {namespace}" if namespace != Settings.namespace else ""
    return f"cnn-jobs {name} {job}{elsewhere}{f' --context {context}' if context else ''}"


@click.command(context_settings={"show_default": True})
@click.argument("jobs", nargs=-1, metavar="[JOB]...")
@cluster_options
def status(jobs: tuple[str, ...], namespace: str, context: str) -> None:
    """Show each JOB, or all of cnn-jobs, with its pods and its runs in MLflow, newest first.

    MLflow is the server of MLFLOW_TRACKING_URI; without it the table has no runs.
    """
    cluster = Cluster(namespace, context)
    named = [find_job(cluster, name) for name in dict.fromkeys(jobs)] if jobs else None
    found = with_pods(cluster, named)
    if not found:
        click.echo(f"no Job of cnn-jobs in namespace {namespace}")
        return
    runs = _runs([job for job, _ in found], namespace)
    listing = table(
        "Job", "State", "Pod", "MLflow", right=("Pods", "Step", *(title for _, title in METRICS)), unbroken=1
    )
    notes: dict[str, None] = {}
    for job, pods in found:
        if job.indexes:
            listing.add_row(Text(job.name), Text(job.state))
        for index in job.run_indexes:
            attempts = [each for each in pods if index is None or each.index == index]
            # Pods that train one run together (DDP) have the Job's UID as key; it is shown in the first row.
            run = runs.get(job.run_key(index)) or (runs.get(job.uid) if index in (None, 0) else None)
            first = (job.name, job.state) if index is None else (f"  index {index}", "")
            pod = attempts[-1].text if attempts else "-"
            listing.add_row(*map(Text, (*first, pod, _run_state(run), str(len(attempts)), *_numbers(run))))
            notes |= dict.fromkeys(_notes(job, index, attempts, run))
    out = console()
    out.print(listing)
    for text in notes:
        out.print(Text(text), soft_wrap=True)


def _tracking_address() -> str:
    """MLflow's address for a user outside of the cluster; "" if none is set."""
    from cnn_jobs.tracking.connection import tracking_uri

    # Not the default database in the current folder: no pod writes to it.
    return tracking_uri() if os.environ.get("MLFLOW_TRACKING_URI") or in_pod() else ""


def _port_forward(namespace: str) -> str:
    """Commands that make the stack's MLflow available."""
    return f"kubectl -n {namespace} port-forward service/mlflow 5000 & export MLFLOW_TRACKING_URI=http://127.0.0.1:5000"


def _runs(jobs: Sequence[JobStatus], namespace: str) -> dict[str, RemoteRun]:
    """Runs by key; without MLflow none, and a line on stderr with the reason."""
    from cnn_jobs.tracking.cancellation import JobRuns

    recording = [job for job in jobs if job.records]
    uri = _tracking_address()
    if recording and not uri:
        click.echo(f"MLFLOW_TRACKING_URI is not set, runs are not shown: {_port_forward(namespace)}", err=True)
        return {}
    runs: dict[str, RemoteRun] = {}
    try:
        for job in recording:
            runs |= {run.tags[names.RUN_KEY]: run for run in JobRuns(uri, job.uid, LOOK_UP_S).runs()}
    except TrackingError as error:
        click.echo(f"runs are not shown: {error}", err=True)
    return runs


def _run_state(run: RemoteRun | None) -> str:
    if run is None:
        return "-"
    return f"{run.status}, {run.state}" if run.state and run.state != run.status.lower() else run.status


def _numbers(run: RemoteRun | None) -> list[str]:
    """The run's step, as of its last heartbeat or its end, and its metrics."""
    if run is None:
        return ["-"] * (1 + len(METRICS))
    try:
        step = str(int(json.loads(run.tags[names.COST])["useful"]["steps"]))
    except (KeyError, ValueError, TypeError):
        step = "-"
    return [step, *(f"{run.metrics[name]:.4f}" if name in run.metrics else "-" for name, _ in METRICS)]


def _notes(job: JobStatus, index: int | None, pods: Sequence[PodStatus], run: RemoteRun | None) -> list[str]:
    """Messages that do not fit into a cell, and the run's page."""
    sources: list[JobStatus | PodStatus] = [job, *pods[-1:]]
    found = [f"{each.name}: {each.message}" for each in sources if each.message]
    if run:
        from cnn_jobs.tracking.connection import run_url, tracking_uri

        title = job.name if index is None else f"{job.name} index {index}"
        if run.status == "RUNNING" and job.over:
            found.append(f"{title}: RUNNING in MLflow, but its Job is over; 'cnn-jobs reap' repairs that")
        elif reason := run.tags.get(names.REASON):
            found.append(f"{title}: {reason}")
        found.append(f"{title}: {run_url(tracking_uri(), run.experiment_id, run.run_id)}")
    return found


@click.command(context_settings={"show_default": True})
@click.argument("job")
@click.option(
    *("--follow", "-f"),
    is_flag=True,
    envvar=env_name("follow"),
    show_envvar=True,
    help="Continue, from pod to pod, until the Job is over.",
)
@option("index", type=click.IntRange(min=0), default=None, show_default="all", help="Only this index of the Job.")
@option("all_attempts", is_flag=True, default=False, help="Not only the last pod: all that exist, oldest first.")
@cluster_options
def logs(job: str, follow: bool, index: int | None, all_attempts: bool, namespace: str, context: str) -> None:
    """Show the log of JOB: of its last pod, or of the last one of each index.

    \b
    With -f it waits for a pod that does not exist yet, continues with the pod of
    the next attempt, survives a broken connection, and ends with exit code 0 when
    the Job is over, whatever its result ('cnn-jobs status' shows it). Ctrl-C ends
    the command, not the Job. If a Job has several indexes, each line begins with
    its own.
    """
    if follow and all_attempts:
        raise UserError("--follow begins with all pods that exist; leave --all-attempts out")
    try:
        cluster = Cluster(namespace, context)
        found = find_job(cluster, job)
        if index is not None and index >= found.indexes:
            has = f"indexes 0 to {found.indexes - 1}" if found.indexes else "no indexes"
            raise UserError(f"--index is {index}, but Job {job} has {has}")
        if follow:
            lines = Follower(cluster, found, index, _on_stderr).lines()
        else:
            lines = current_lines(cluster, found, index, all_attempts=all_attempts)
        prefixed = found.indexes > 1 and index is None
        for line in lines:
            click.echo(f"[{line.index}] {line.text}" if prefixed else line.text)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@click.command(context_settings={"show_default": True})
@click.argument("job")
@option("timeout", type=click.FloatRange(min=0), default=120.0, help="Seconds to wait until the Job's pods are gone.")
@cluster_options
def cancel(job: str, timeout: float, namespace: str, context: str) -> None:
    """Stop JOB for good: its runs become KILLED and cancelled in MLflow, with their last checkpoint.

    MLflow (MLFLOW_TRACKING_URI) is notified first: an attempt that is stopped then
    ends as cancelled, and one that starts ends at once. A run that has finished or
    failed by itself keeps its status.
    """
    from cnn_jobs.tracking.cancellation import JobRuns

    cluster = Cluster(namespace, context)
    found = find_job(cluster, job)
    if found.over:
        click.echo(f"Job {job} is over ({found.state}): there is nothing to cancel")
        return
    runs = None
    if found.records:
        uri = _tracking_address()
        if not uri:
            raise UserError(f"MLFLOW_TRACKING_URI is not set, and MLflow must be notified: {_port_forward(namespace)}")
        runs = JobRuns(uri, found.uid)
    settled = cluster_jobs.cancel(cluster, found, runs, f"cancelled by {_user()}", timeout, _on_stderr)
    click.echo(f"Job {job} is gone")
    if found.records and not settled:
        click.echo("MLflow has no run of it: it was cancelled before it began")
    for run in settled:
        state = f", {run.state}" if run.state != run.status.lower() else ""
        kept = "its checkpoint is in MLflow" if run.has_checkpoint else "no checkpoint of it is in MLflow"
        click.echo(f"run {run.name} ({run.key}): {run.status}{state}; {kept}\n  {run.url}")


def _on_stderr(message: str) -> None:
    click.echo(message, err=True)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a numeric user of a container has no name
        return "a user without a name"
