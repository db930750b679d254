"""A Job's end before its time: told in MLflow first, so that its runs end as cancelled and no pod goes on with them."""

from __future__ import annotations

import time
from collections.abc import Callable

from cnn_jobs.cluster.client import Cluster
from cnn_jobs.cluster.facts import JOB_UID, JobFacts, job_facts, pod_facts
from cnn_jobs.errors import ClusterError, ClusterRefusalError, CnnJobsError, TrackingError
from cnn_jobs.tracking.cancel import JobRuns, Settled

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
            told = runs.tell(reason)
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
