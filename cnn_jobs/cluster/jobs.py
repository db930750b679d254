"""A Job's end before its time: told in MLflow first, so that its runs end as cancelled and no pod goes on with them."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cnn_jobs.cluster.client import Cluster, NameTakenError, NoAnswerError, Object
from cnn_jobs.cluster.manifests import documents
from cnn_jobs.cluster.plans import SUFFIX, Plan, all_plans, choose
from cnn_jobs.cluster.settings import Settings, check_name
from cnn_jobs.cluster.status import JOB_UID, QUEUE_LABEL, JobFacts, job_facts, pod_facts
from cnn_jobs.cluster.yaml_text import to_yaml
from cnn_jobs.errors import ClusterError, ClusterRefusalError, CnnJobsError, TrackingError, UserError
from cnn_jobs.recipe import Planned
from cnn_jobs.tracking.cancellation import JobRuns, Settled

# As Kubernetes' own random names: no vowels, no digits that look like letters.
ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
SUFFIX_LENGTH = 5
# Of a Job's name, so that with '-', an index, '-' and five more characters its pods' names stay DNS labels.
LONGEST_NAME = 50
# Kubernetes takes 100,000 indexes, and of these at most 10,000 at a time.
MOST_RUNS = 10_000
KUEUE = "kueue.x-k8s.io"
# The first whose schemas the manifests are held against. One of before drops a field that it does not know, in silence:
# podFailurePolicy, podReplacementPolicy, completionMode.
OLDEST = (1, 31)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to run. ``labels``: of a Job with indexes what each index is, as in ``lr0.001-seed2``."""

    plan: Plan
    settings: Settings
    queue: str = ""
    labels: tuple[str, ...] = ()


def plan_for(name: str, settings: Settings) -> Plan:
    """The plan of a Job of the registry. Raises ``UserError`` for none, and for one that is more than a Job."""
    names = [plan.name for plan in all_plans()]
    if name not in names:
        raise UserError(f"'{name}' is nothing to submit; there are {', '.join(names)}")
    (plan,) = choose([name])
    if len(documents(plan, settings)) > 1:
        raise UserError(
            f"'{name}' is a Job with a Service and a NetworkPolicy of its own, which 'submit' does not make; "
            f"use kubectl apply -f k8s/{name}{SUFFIX}"
        )
    return plan


def with_runs(
    plan: Plan, options: Sequence[str], seeds: str, sweeps: Sequence[str], planned: Sequence[Planned]
) -> Plan:
    """The plan with more ``options``; of several runs an index each: ``planned``, which 'train' plans just so.

    Raises ``UserError`` for more runs than Kubernetes takes.
    """
    if len(planned) > MOST_RUNS:
        raise UserError(f"--seeds and --sweep give {len(planned)} runs, but a Job has at most {MOST_RUNS}")
    plan = replace(plan, args=(*plan.args, *options))
    if len(planned) > 1 and not sweeps and [each.recipe.seed for each in planned] == list(range(len(planned))):
        # As in k8s/*-seeds-job.yaml: the index is the seed, and more can be added while it runs.
        return replace(plan, indexes=len(planned), index_variable="CNN_JOBS_SEED")
    series = [word for sweep in sweeps for word in ("--sweep", sweep)] + (["--seeds", seeds] if seeds else [])
    plan = replace(plan, args=(*plan.args, *series))
    return replace(plan, indexes=len(planned), index_variable="CNN_JOBS_POINT") if len(planned) > 1 else plan


def manifest(request: Request) -> Object:
    """The Job, under a name that nobody has."""
    suffix = "".join(secrets.choice(ALPHABET) for _ in range(SUFFIX_LENGTH))
    base = request.plan.name[: LONGEST_NAME - SUFFIX_LENGTH - 1].rstrip("-")
    (job,) = documents(replace(request.plan, name=f"{base}-{suffix}"), request.settings)
    if request.queue:
        check_name("--queue", request.queue, "localqueues")
        job["metadata"]["labels"] = {**job["metadata"]["labels"], QUEUE_LABEL: request.queue}
        # As Kueue's page "Run A Kubernetes Job" wants it; Kueue resumes it when there is room.
        job["spec"] = {"suspend": True, **job["spec"]}
    return dict(job)


def as_yaml(job: Object) -> str:
    """For 'kubectl create -f -'."""
    return to_yaml(job, {})


def submit(cluster: Cluster, request: Request) -> Object:
    """Makes the Job; returns it as the cluster has it. Raises as ``Cluster``."""
    _check_version(cluster)
    if request.queue:
        _check_kueue(cluster)
    for left in (2, 1, 0):
        job = manifest(request)
        try:
            return cluster.create_job(job)
        except NameTakenError:
            if not left:
                raise
        except NoAnswerError as error:
            name = job["metadata"]["name"]
            raise ClusterError(f"{error}; if it was made all the same, 'cnn-jobs status {name}' shows it") from error
    raise AssertionError("not reached")


def _check_version(cluster: Cluster) -> None:
    """Else a run that can never work would be tried again, and two attempts of one run could train side by side."""
    with contextlib.suppress(ClusterRefusalError):
        version = cluster.version()
        if version and version < OLDEST:
            raise UserError(
                f"the cluster is Kubernetes {version[0]}.{version[1]}, which drops what these Jobs rely on "
                f"(podFailurePolicy, podReplacementPolicy); use one of {OLDEST[0]}.{OLDEST[1]} or later"
            )


def _check_kueue(cluster: Cluster) -> None:
    """Without Kueue nobody would ever resume the Job."""
    # Whoever may not list what the cluster serves has to know it.
    with contextlib.suppress(ClusterRefusalError):
        if not cluster.has_group(KUEUE):
            raise UserError(
                "--queue: this cluster has no Kueue, and a Job that waits in a queue would never start; leave --queue "
                "out, or install Kueue and apply k8s/overlays/kueue"
            )


POLL_S = 1.0
Say = Callable[[str], object]


def find_job(cluster: Cluster, name: str) -> JobFacts:
    """The Job. Raises ``ClusterRefusalError`` (exit 2) where there is none of this name."""
    found = cluster.job(name)
    if found is None:
        raise ClusterRefusalError(
            f"no Job {name} in namespace {cluster.namespace}; 'cnn-jobs status' lists those that are there"
        )
    return job_facts(found)


def cancel(
    cluster: Cluster, job: JobFacts, runs: JobRuns | None, reason: str, timeout_s: float, say: Say
) -> list[Settled]:
    """Stops a Job that is not over; returns its runs as they are then. ``runs``: ``None`` of a Job that records none.

    Raises ``TrackingError`` (exit 1) before anything is stopped where MLflow cannot be told; ``ClusterError`` (exit 1)
    where its pods are not gone in time.
    """
    if runs:
        try:
            told = runs.mark_cancelled(reason)
        except TrackingError as error:
            raise TrackingError(
                f"{error}; nothing was stopped. 'kubectl -n {cluster.namespace} delete job {job.name}' stops it "
                "without a word in MLflow"
            ) from error
        say(f"{len(told)} runs are marked as cancelled" if len(told) != 1 else "its run is marked as cancelled")
    cluster.delete_job(job.name, job.uid)
    say("the Job is deleted; waiting until its pods have saved their state and are gone")
    _wait_until_gone(cluster, job, timeout_s)
    if not runs:
        return []
    try:
        return runs.settle(reason)
    except TrackingError as error:
        raise TrackingError(
            f"Job {job.name} and its pods are gone, but MLflow could not be asked how its runs ended ({error}); "
            "'cnn-jobs reap' sets the status of one that was killed"
        ) from error


def _wait_until_gone(cluster: Cluster, job: JobFacts, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    trouble = ""
    while True:
        try:
            pods = cluster.pods(f"{JOB_UID}={job.uid}")
            there = cluster.job(job.name)
            if not pods and (there is None or there["metadata"]["uid"] != job.uid):
                return
            facts = [pod_facts(each, job.container) for each in pods]
            trouble = ", ".join(f"pod {each.name} ({each.text})" for each in facts) or f"Job {job.name} itself"
        except ClusterError as error:  # the cluster is away for a moment: what was begun goes on without us
            trouble = str(error)
        if time.monotonic() > end:
            raise _late(job, trouble, timeout_s)
        time.sleep(POLL_S)


def _late(job: JobFacts, trouble: str, timeout_s: float) -> CnnJobsError:
    return ClusterError(
        f"Job {job.name} is deleted, but not gone after {timeout_s:.0f} s: {trouble}; its runs keep the word "
        f"'cancelled'. Call 'cnn-jobs cancel {job.name}' again to wait longer"
    )
