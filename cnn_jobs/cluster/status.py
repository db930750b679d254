"""Jobs, their pods and their runs in MLflow, brought together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnn_jobs.cluster.client import OURS, Cluster
from cnn_jobs.tracking.client import RemoteRun

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
JOB_NAME, JOB_UID = "batch.kubernetes.io/job-name", "batch.kubernetes.io/controller-uid"
INDEX = "batch.kubernetes.io/job-completion-index"


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """``state`` in words; ``over``: nothing of it will run again; ``indexes``: 0 for a Job of one pod at a time."""

    name: str
    uid: str
    task: str
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

    def run_key(self, index: int | None) -> str:
        """Of the run of an index, as ``environment.job_run_key`` makes it in the pod."""
        return self.uid if index is None else f"{self.uid}-{index}"


@dataclass(frozen=True, kw_only=True)
class PodFacts:
    """One attempt. ``text``: phase, reason and exit code in a few words; ``message``: why, where Kubernetes says it.

    ``started``: there is, or was, a container whose log can be read; ``ended``: there will be no more of it.
    """

    name: str
    job_uid: str
    index: int | None
    text: str
    message: str
    started: bool
    ended: bool


def job_facts(job: Mapping[str, Any]) -> JobFacts:
    """Of an object of the API."""
    metadata, spec = job["metadata"], job["spec"]
    labels = metadata.get("labels") or {}
    state, message, over = _state(job)
    containers = spec["template"]["spec"]["containers"]
    return JobFacts(
        name=metadata["name"],
        uid=metadata["uid"],
        task=labels.get("cnn-jobs/task", ""),
        component=labels.get("app.kubernetes.io/component", ""),
        container=containers[0]["name"],
        state=state,
        message=message,
        over=over,
        indexes=int(spec.get("completions") or 0) if spec.get("completionMode") == "Indexed" else 0,
    )


def _state(job: Mapping[str, Any]) -> tuple[str, str, bool]:
    """State, message and whether it is over."""
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
    done = f", {status.get('succeeded') or 0} of {spec.get('completions')} done" if _many(spec) else ""
    # Without a word on it (Kubernetes before 1.24) what is active counts as ready.
    if status.get("ready", status.get("active")):
        return f"running{done}", "", False
    return (f"starting{done}" if status.get("active") else f"waiting{done}"), "", False


def _many(spec: Mapping[str, Any]) -> bool:
    return spec.get("completionMode") == "Indexed" and int(spec.get("completions") or 0) > 1


def pod_facts(pod: Mapping[str, Any], container: str) -> PodFacts:
    """Of an object of the API; ``container``: the one that does the work."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    index = annotations.get(INDEX, labels.get(INDEX))
    states = [each for each in status.get("containerStatuses") or () if each["name"] == container]
    state: Mapping[str, Any] = (states[0].get("state") or {}) if states else {}
    ended = state.get("terminated")
    text, message = _text(status, state, terminating="deletionTimestamp" in metadata)
    if states and (restarts := states[0].get("restartCount")):
        text += f", {restarts} restarts"
    return PodFacts(
        name=metadata["name"],
        job_uid=labels.get(JOB_UID, ""),
        index=None if index is None else int(index),
        text=text,
        message=" ".join(message.split()),
        started=bool(ended) or "running" in state,
        ended=bool(ended) or status.get("phase") in ("Succeeded", "Failed"),
    )


def _text(status: Mapping[str, Any], state: Mapping[str, Any], *, terminating: bool) -> tuple[str, str]:
    phase = str(status.get("phase", "Unknown"))
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    reason, message = str(status.get("reason") or ""), str(status.get("message") or "")
    if ended := state.get("terminated"):
        code = int(ended.get("exitCode", 0))
        # 'Error' says no more than the code does.
        own = "" if ended.get("reason") in ("Error", "Completed", None) else str(ended["reason"])
        reason = ", ".join(each for each in (reason, own, f"exit code {code}") if each)
        if code:
            message = message or _last_line(str(ended.get("message") or ""))
    elif waiting := state.get("waiting"):
        reason, message = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
    else:
        scheduled = conditions.get("PodScheduled", {})
        if phase == "Pending" and scheduled.get("status") == "False":
            reason, message = str(scheduled.get("reason") or ""), str(scheduled.get("message") or "")
    disruption = conditions.get("DisruptionTarget", {})
    if disruption.get("status") == "True":
        reason = ", ".join(each for each in (reason, str(disruption.get("reason") or "")) if each)
        message = message or str(disruption.get("message") or "")
    if terminating and phase == "Running":
        phase = "Terminating"
    return (f"{phase}: {reason}" if reason else phase), message


def _last_line(text: str) -> str:
    """terminationMessagePolicy FallbackToLogsOnError: the end of the log, whose last line is the error."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


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
