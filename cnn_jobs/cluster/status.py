"""Jobs, their pods and their runs in MLflow, brought together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cnn_jobs.cluster.client import OURS, Cluster
from cnn_jobs.cluster.facts import JOB_UID, JobFacts, PodFacts, job_facts, pod_facts
from cnn_jobs.tracking.remote import RemoteRun


@dataclass(frozen=True, kw_only=True)
class Line:
    """A Job, or one index of it: its pods, the oldest first, and its run where MLflow has one."""

    job: JobFacts
    index: int | None
    pods: tuple[PodFacts, ...]
    run: RemoteRun | None

    @property
    def title(self) -> str:
        """Name of the Job, and the index."""
        return self.job.name if self.index is None else f"{self.job.name} index {self.index}"


def jobs_and_pods(cluster: Cluster, jobs: Sequence[JobFacts] | None) -> list[tuple[JobFacts, list[PodFacts]]]:
    """These Jobs, or all of this program, the newest first, each with its pods."""
    selector = OURS if jobs is None else f"{JOB_UID} in ({','.join(each.uid for each in jobs)})"
    if jobs is None:
        jobs = [job_facts(each) for each in cluster.jobs()]
    containers = {each.uid: each.container for each in jobs}
    pods: dict[str, list[PodFacts]] = defaultdict(list)
    for each in cluster.pods(selector) if jobs else []:
        uid = (each["metadata"].get("labels") or {}).get(JOB_UID, "")
        pods[uid].append(pod_facts(each, containers.get(uid, "")))
    return [(job, pods[job.uid]) for job in jobs]


def lines_of(job: JobFacts, pods: Sequence[PodFacts], runs: Mapping[str, RemoteRun]) -> list[Line]:
    """A line, or one for each index. ``runs``: by key."""
    indexes: list[int | None] = list(range(job.indexes)) if job.indexes else [None]
    return [
        Line(
            job=job,
            index=index,
            pods=tuple(each for each in pods if index is None or each.index == index),
            # Where all pods are one run (DDP), the key is the Job's and its line the first.
            run=runs.get(job.run_key(index)) or (runs.get(job.uid) if index in (None, 0) else None),
        )
        for index in indexes
    ]
