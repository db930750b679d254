"""A new Job from the manifest of its task: a name of its own, options, seeds or a grid, a queue."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cnn_jobs.cluster.client import Cluster, NameTakenError, NoAnswerError, Object
from cnn_jobs.cluster.facts import QUEUE_LABEL
from cnn_jobs.cluster.manifest import documents
from cnn_jobs.cluster.plans import SUFFIX, Plan, all_plans, choose
from cnn_jobs.cluster.settings import Settings, check_name
from cnn_jobs.cluster.yaml_text import to_yaml
from cnn_jobs.errors import ClusterError, ClusterRefusalError, UserError
from cnn_jobs.series import Planned

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
