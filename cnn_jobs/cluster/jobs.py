"""Submit a Job under a unique name, or cancel one: in MLflow first, so that no other pod resumes its runs."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cnn_jobs.cluster.client import Cluster, ConflictError, NoAnswerError, Object
from cnn_jobs.cluster.manifests import documents
from cnn_jobs.cluster.plans import Plan, choose
from cnn_jobs.cluster.settings import Settings
from cnn_jobs.cluster.status import QUEUE_LABEL, JobStatus, pods_of
from cnn_jobs.errors import ClusterError, ClusterRefusalError, TrackingError, UserError
from cnn_jobs.recipe import Planned
from cnn_jobs.tracking.cancellation import JobRuns, Settled

# The alphabet of Kubernetes' own random names: no vowels, no digits that resemble letters.
ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
SUFFIX_LENGTH = 5
# Of a Job's name: with '-', an index, '-' and five more characters, names of its pods remain DNS labels.
LONGEST_NAME = 50
# Kubernetes allows 100,000 indexes, of which at most 10,000 run at a time.
MOST_RUNS = 10_000
KUEUE = "kueue.x-k8s.io"
# The oldest version whose schemas the manifests are tested with. Earlier ones silently drop fields that they do not
# know: podFailurePolicy, podReplacementPolicy, completionMode.
OLDEST = (1, 31)
ATTEMPTS = 3
POLL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """A Job to submit. ``labels``: in a Job with indexes, the label of each index's run, as in ``lr0.001-seed2``."""

    plan: Plan
    settings: Settings
    queue: str = ""
    labels: tuple[str, ...] = ()

    def manifest(self) -> Object:
        """The Job, under a new random name."""
        suffix = "".join(secrets.choice(ALPHABET) for _ in range(SUFFIX_LENGTH))
        base = self.plan.name[: LONGEST_NAME - SUFFIX_LENGTH - 1].rstrip("-")
        (job,) = documents(replace(self.plan, name=f"{base}-{suffix}"), self.settings)
        if self.queue:
            job["metadata"]["labels"][QUEUE_LABEL] = self.queue
            # As in Kueue's page "Run A Kubernetes Job": Kueue resumes the Job when there is room.
            job["spec"] = {"suspend": True, **job["spec"]}
        return job


def plan_for(name: str) -> Plan:
    """The plan of a Job of the registry. Raises ``UserError`` for an unknown one, and for one with other objects."""
    (plan,) = choose([name])
    if plan.distributed:
        raise UserError(
            f"'{name}' is a Job with a Service and a NetworkPolicy, which 'submit' does not create; "
            f"use kubectl apply -f k8s/{plan.file}"
        )
    return plan


def with_runs(
    plan: Plan, options: Sequence[str], seeds: str, sweeps: Sequence[str], planned: Sequence[Planned]
) -> Plan:
    """``plan`` with more ``options``. Several ``planned`` runs, which 'train' plans in the same way, get an index each.

    Raises ``UserError`` for more runs than Kubernetes allows.
    """
    if len(planned) > MOST_RUNS:
        raise UserError(f"--seeds and --sweep give {len(planned)} runs, but a Job has at most {MOST_RUNS}")
    plan = replace(plan, args=(*plan.args, *options))
    if len(planned) > 1 and not sweeps and [each.recipe.seed for each in planned] == list(range(len(planned))):
        # As in k8s/*-seeds-job.yaml: the index is the seed, and seeds can be added while the Job runs.
        return replace(plan, indexes=len(planned), index_variable="CNN_JOBS_SEED")
    series = [word for sweep in sweeps for word in ("--sweep", sweep)] + (["--seeds", seeds] if seeds else [])
    plan = replace(plan, args=(*plan.args, *series))
    return replace(plan, indexes=len(planned), index_variable="CNN_JOBS_POINT") if len(planned) > 1 else plan


def submit(cluster: Cluster, request: Request) -> Object:
    """Creates the Job; returns it as the cluster stores it. Raises as ``Cluster``."""
    # Without the permission to read version and API groups, the user has to know them.
    with contextlib.suppress(ClusterRefusalError):
        _check_version(cluster)
    if request.queue:
        with contextlib.suppress(ClusterRefusalError):
            _check_kueue(cluster)
    for attempt in range(1, ATTEMPTS + 1):
        job = request.manifest()
        try:
            return cluster.create_job(job)
        except ConflictError:
            if attempt == ATTEMPTS:
                raise
        except NoAnswerError as error:
            name = job["metadata"]["name"]
            raise ClusterError(f"{error}; if it was created all the same, 'cnn-jobs status {name}' shows it") from error
    raise AssertionError("not reached")


def _check_version(cluster: Cluster) -> None:
    """On an old cluster, hopeless runs would be retried, and two attempts of a run could train at the same time."""
    version = cluster.version()
    if version and version < OLDEST:
        raise UserError(
            f"the cluster is Kubernetes {version[0]}.{version[1]}, which drops fields that these Jobs rely on "
            f"(podFailurePolicy, podReplacementPolicy); use one of {OLDEST[0]}.{OLDEST[1]} or later"
        )


def _check_kueue(cluster: Cluster) -> None:
    if not cluster.has_api_group(KUEUE):
        raise UserError(
            "--queue: this cluster has no Kueue, so a Job that waits in a queue would never start; leave --queue "
            "out, or install Kueue and apply k8s/overlays/kueue"
        )


def cancel(
    cluster: Cluster,
    job: JobStatus,
    runs: JobRuns | None,
    reason: str,
    timeout_s: float,
    notify: Callable[[str], object],
) -> list[Settled]:
    """Stops a Job that is not over; returns the final state of its runs. ``runs``: ``None`` if it records none.

    Raises ``TrackingError`` (exit 1) before anything is stopped if MLflow cannot be notified, and ``ClusterError``
    (exit 1) if its pods are not gone in time.
    """
    if runs:
        try:
            marked = len(runs.mark_cancelled(reason))
        except TrackingError as error:
            raise TrackingError(
                f"{error}; nothing was stopped. 'kubectl -n {cluster.namespace} delete job {job.name}' stops it "
                "without recording that in MLflow"
            ) from error
        notify("its run is marked as cancelled" if marked == 1 else f"{marked} runs are marked as cancelled")
    cluster.delete_job(job.name, job.uid)
    notify("the Job is deleted; waiting until its pods have saved their state and are gone")
    _wait_until_gone(cluster, job, timeout_s)
    if not runs:
        return []
    try:
        return runs.settle(reason)
    except TrackingError as error:
        raise TrackingError(
            f"Job {job.name} and its pods are gone, but MLflow could not be asked how its runs ended ({error}); "
            "'cnn-jobs reap' sets the status of a run that was killed"
        ) from error


def _wait_until_gone(cluster: Cluster, job: JobStatus, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            pods = pods_of(cluster, job)
            found = cluster.job(job.name)
            if not pods and (found is None or found["metadata"]["uid"] != job.uid):
                return
            remaining = ", ".join(f"pod {each.name} ({each.text})" for each in pods) or f"Job {job.name} itself"
        except ClusterError as error:  # temporarily unavailable; the deletion continues
            remaining = str(error)
        if time.monotonic() > deadline:
            raise ClusterError(
                f"Job {job.name} is deleted, but not gone after {timeout_s:.0f} s: {remaining}; its runs stay marked "
                f"as cancelled. Run 'cnn-jobs cancel {job.name}' again to wait longer"
            )
        time.sleep(POLL_S)
