"""What the API's objects say of a Job and a pod, in words: the states as Kubernetes 1.36 reports them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from cnn_jobs.cluster.status import job_facts, pod_facts
from tests.cluster.job_files import DOCUMENTS

TRUE = {"status": "True"}


def job(*, indexed: bool = False, suspend: bool = False, queue: str = "", deleted: bool = False, **status: Any) -> Any:
    made = copy.deepcopy(DOCUMENTS["task2-seeds-job.yaml" if indexed else "task2-job.yaml"])
    made["metadata"]["uid"] = "u"
    if queue:
        made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = queue
    if deleted:
        made["metadata"]["deletionTimestamp"] = "2026-11-25T00:00:00Z"
    return {**made, "spec": {**made["spec"], "suspend": suspend}, "status": status}


@pytest.mark.parametrize(
    ("made", "state", "message", "over"),
    [
        (job(), "waiting", "", False),
        (job(active=1, ready=0), "starting", "", False),
        (job(active=1, ready=1), "running", "", False),
        (job(active=1), "running", "", False),
        (job(indexed=True, active=3, ready=2, succeeded=2), "running, 2 of 5 done", "", False),
        (job(suspend=True), "suspended", "", False),
        (job(suspend=True, queue="night"), "waits in queue night", "", False),
        (job(queue="night", active=1, ready=1), "running", "", False),
        (job(deleted=True, active=1), "being deleted", "", False),
        (job(conditions=[{"type": "Complete", **TRUE}]), "complete", "", True),
        (job(conditions=[{"type": "Suspended", "status": "False"}], active=1, ready=1), "running", "", False),
        (
            job(conditions=[{"type": "FailureTarget", **TRUE, "message": "m"}], active=1),
            "failing", "m", False,
        ),
        (
            job(conditions=[{"type": "Failed", **TRUE, "reason": "PodFailurePolicy", "message": "exit code 2"}]),
            "failed", "PodFailurePolicy: exit code 2", True,
        ),
    ],
)  # fmt: skip
def test_the_state_of_a_job(made: Any, state: str, message: str, over: bool) -> None:
    facts = job_facts(made)
    assert (facts.state, facts.message, facts.over) == (state, message, over)


def test_the_keys_of_its_runs_are_those_that_its_pods_take(monkeypatch: pytest.MonkeyPatch) -> None:
    from cnn_jobs.system.environment import job_run_key

    monkeypatch.setenv("CNN_JOBS_JOB_UID", "u")
    facts = job_facts(job())
    assert (facts.indexes, facts.run_key(None)) == (0, job_run_key())
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    facts = job_facts(job(indexed=True))
    assert (facts.indexes, facts.run_key(3)) == (5, job_run_key())


def pod(phase: str, state: Any = None, *, deleted: bool = False, restarts: int = 0, **status: Any) -> Any:
    containers = [] if state is None else [{"name": "train", "state": state, "restartCount": restarts}]
    metadata = {"name": "p", "labels": {}, **({"deletionTimestamp": "x"} if deleted else {})}
    return {"metadata": metadata, "status": {"phase": phase, "containerStatuses": containers, **status}}


def ended(code: int, reason: str = "Error", message: str = "") -> Any:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


UNSCHEDULABLE = {
    "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: 3 Insufficient gpu",
}  # fmt: skip
EVICTED = {"type": "DisruptionTarget", **TRUE, "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"}


@pytest.mark.parametrize(
    ("made", "text", "message", "started", "over"),
    [
        (pod("Pending"), "Pending", "", False, False),
        (pod("Pending", conditions=[UNSCHEDULABLE]),
         "Pending: Unschedulable", "0/3 nodes: 3 Insufficient gpu", False, False),
        (pod("Pending", {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off\npulling"}}),
         "Pending: ImagePullBackOff", "Back-off pulling", False, False),
        (pod("Running", {"running": {}}), "Running", "", True, False),
        (pod("Running", {"running": {}}, restarts=2), "Running, 2 restarts", "", True, False),
        (pod("Running", {"running": {}}, deleted=True), "Terminating", "", True, False),
        (pod("Succeeded", ended(0, "Completed")), "Succeeded: exit code 0", "", True, True),
        (pod("Failed", ended(1, message="one\nerror: disk full\n")),
         "Failed: exit code 1", "error: disk full", True, True),
        (pod("Failed", ended(137, "OOMKilled")), "Failed: OOMKilled, exit code 137", "", True, True),
        (pod("Failed", ended(137), reason="Evicted", message="low on memory"),
         "Failed: Evicted, exit code 137", "low on memory", True, True),
        (pod("Failed", ended(75), conditions=[EVICTED]),
         "Failed: exit code 75, EvictionByEvictionAPI", "Eviction API: evicting", True, True),
        (pod("Failed", reason="NodeLost"), "Failed: NodeLost", "", False, True),
        ({"metadata": {"name": "p"}}, "Unknown", "", False, False),
    ],
)  # fmt: skip
def test_the_state_of_a_pod(made: Any, text: str, message: str, started: bool, over: bool) -> None:
    facts = pod_facts(made, "train")
    assert (facts.text, facts.message, facts.started, facts.ended) == (text, message, started, over)


def test_an_index_comes_from_annotation_or_label() -> None:
    name = "batch.kubernetes.io/job-completion-index"
    for place in ("annotations", "labels"):
        assert pod_facts({"metadata": {"name": "p", place: {name: "12"}}}, "train").index == 12
    assert pod_facts({"metadata": {"name": "p"}}, "train").index is None
