"""Status of Jobs and their pods as short texts, and the keys of their runs in MLflow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnn_jobs.cluster.client import SELECTOR, Cluster
from cnn_jobs.errors import ClusterRefusalError

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
UID_LABEL = "batch.kubernetes.io/controller-uid"
INDEX = "batch.kubernetes.io/job-completion-index"


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """``state`` is a short text; ``over``: no pod will run again; ``indexes``: 0 for a Job of one pod at a time."""

    name: str
    uid: str
    component: str
    container: str
    state: str
    message: str
    over: bool
    indexes: int

    @property
    def records(self) -> bool:
        """Whether its pods are attempts of runs in MLflow, whose key is the Job's UID."""
        return self.component == "training"

    @property
    def run_indexes(self) -> list[int | None]:
        """The index of each of its runs; ``[None]`` for a Job of one pod at a time."""
        return list(range(self.indexes)) if self.indexes else [None]

    def run_key(self, index: int | None) -> str:
        """Key of the run of an index, as ``environment.job_run_key`` makes it in the pod."""
        return self.uid if index is None else f"{self.uid}-{index}"


@dataclass(frozen=True, kw_only=True)
class PodStatus:
    """One attempt. ``text``: phase, reason and exit code; ``message``: why, if Kubernetes reports it.

    ``started``: its container has, or had, a log; ``ended``: the log is complete.
    """

    name: str
    index: int | None
    text: str
    message: str
    started: bool
    ended: bool


def job_status(job: Mapping[str, Any]) -> JobStatus:
    """The status of a Job as the API returns it."""
    metadata, spec = job["metadata"], job["spec"]
    state, message, over = _job_state(job)
    return JobStatus(
        name=metadata["name"],
        uid=metadata["uid"],
        component=(metadata.get("labels") or {}).get("app.kubernetes.io/component", ""),
        container=spec["template"]["spec"]["containers"][0]["name"],
        state=state,
        message=message,
        over=over,
        indexes=_indexes(spec),
    )


def _indexes(spec: Mapping[str, Any]) -> int:
    return int(spec.get("completions") or 0) if spec.get("completionMode") == "Indexed" else 0


def _job_state(job: Mapping[str, Any]) -> tuple[str, str, bool]:
    """State, message and whether the Job is over."""
    metadata, spec, status = job["metadata"], job["spec"], job.get("status") or {}
    conditions = {each["type"]: each for each in status.get("conditions") or () if each["status"] == "True"}
    if metadata.get("deletionTimestamp"):
        return "being deleted", "", False
    if "Complete" in conditions:
        return "complete", "", True
    if failed := conditions.get("Failed"):
        return "failed", ": ".join(failed[name] for name in ("reason", "message") if failed.get(name)), True
    if failing := conditions.get("FailureTarget"):
        return "failing", failing.get("message", ""), False
    if spec.get("suspend"):
        queue = (metadata.get("labels") or {}).get(QUEUE_LABEL, "")
        return (f"waits in queue {queue}" if queue else "suspended"), "", False
    done = f", {status.get('succeeded') or 0} of {spec.get('completions')} done" if _indexes(spec) > 1 else ""
    # Kubernetes before 1.24 does not report 'ready': an active pod counts as ready then.
    if status.get("ready", status.get("active")):
        return f"running{done}", "", False
    return (f"starting{done}" if status.get("active") else f"waiting{done}"), "", False


def pod_status(pod: Mapping[str, Any], container: str) -> PodStatus:
    """The status of a pod as the API returns it; ``container``: the one that does the work."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    index = (metadata.get("annotations") or {}).get(INDEX, (metadata.get("labels") or {}).get(INDEX))
    containers = [each for each in status.get("containerStatuses") or () if each["name"] == container]
    state: Mapping[str, Any] = (containers[0].get("state") or {}) if containers else {}
    text, message = _pod_text(status, state, terminating="deletionTimestamp" in metadata)
    if containers and (restarts := containers[0].get("restartCount")):
        text += f", {restarts} restarts"
    return PodStatus(
        name=metadata["name"],
        index=None if index is None else int(index),
        text=text,
        message=" ".join(message.split()),
        started="terminated" in state or "running" in state,
        ended="terminated" in state or status.get("phase") in ("Succeeded", "Failed"),
    )


def _pod_text(status: Mapping[str, Any], state: Mapping[str, Any], *, terminating: bool) -> tuple[str, str]:
    """Phase with reasons and exit code, and the message."""
    phase = str(status.get("phase", "Unknown"))
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    scheduled, disrupted = conditions.get("PodScheduled", {}), conditions.get("DisruptionTarget", {})
    source: Mapping[str, Any] = status
    reasons: list[Any] = []
    if ended := state.get("terminated"):
        code = int(ended.get("exitCode", 0))
        # 'Error' and 'Completed' repeat the exit code.
        own = ended.get("reason") if ended.get("reason") not in ("Error", "Completed") else None
        reasons = [own, f"exit code {code}"]
        if code and not status.get("message"):
            # terminationMessagePolicy FallbackToLogsOnError: the end of the log, whose last line is the error.
            last_line = (str(ended.get("message") or "").strip().splitlines() or [""])[-1]
            source = {**status, "message": last_line}
    elif state.get("waiting"):
        source = state["waiting"]
    elif phase == "Pending" and scheduled.get("status") == "False":
        source = scheduled
    reasons.insert(0, source.get("reason"))
    message = source.get("message")
    if disrupted.get("status") == "True":
        reasons.append(disrupted.get("reason"))
        message = message or disrupted.get("message")
    if terminating and phase == "Running":
        phase = "Terminating"
    reason = ", ".join(str(each) for each in reasons if each)
    return (f"{phase}: {reason}" if reason else phase), str(message or "")


def find_job(cluster: Cluster, name: str) -> JobStatus:
    """The Job of that name. Raises ``ClusterRefusalError`` (exit 2) if there is none."""
    found = cluster.job(name)
    if found is None:
        raise ClusterRefusalError(
            f"no Job {name} in namespace {cluster.namespace}; 'cnn-jobs status' lists those that are there"
        )
    return job_status(found)


def pods_of(cluster: Cluster, job: JobStatus, index: int | None = None) -> list[PodStatus]:
    """The pods of a Job, or of one index of it, oldest first."""
    pods = [pod_status(each, job.container) for each in cluster.pods(f"{UID_LABEL}={job.uid}")]
    return [pod for pod in pods if index is None or pod.index == index]


def with_pods(cluster: Cluster, jobs: Sequence[JobStatus] | None) -> list[tuple[JobStatus, list[PodStatus]]]:
    """These Jobs, or all of cnn-jobs, newest first, each with its pods."""
    if jobs is None:
        jobs, selector = [job_status(each) for each in cluster.jobs()], SELECTOR
    else:
        selector = f"{UID_LABEL} in ({','.join(each.uid for each in jobs)})"
    pods: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for pod in cluster.pods(selector) if jobs else []:
        pods[(pod["metadata"].get("labels") or {}).get(UID_LABEL, "")].append(pod)
    return [(job, [pod_status(each, job.container) for each in pods[job.uid]]) for job in jobs]
