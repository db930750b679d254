"""Status of Jobs and pods as Kubernetes 1.36 reports them, and the table of ``cnn-jobs status``."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from cnn_jobs.cluster.status import job_status, pod_status
from tests.helpers.calls import Called, call
from tests.helpers.job_files import DOCUMENTS
from tests.helpers.kubernetes_api import FakeApi
from tests.helpers.servers import unused
from tests.helpers.tracking import client, finish, recording


def status(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Called:
    return call(monkeypatch, "status", *arguments)


def named(file: str, name: str) -> dict[str, Any]:
    job = copy.deepcopy(DOCUMENTS[file])
    job["metadata"]["name"] = name
    return job


def row(done: Called, start: str) -> list[str]:
    """The cells of the only row that begins with ``start``."""
    (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith(start)]
    return re.split(r"\s{2,}", line.strip())


def test_without_jobs_a_line_says_so(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    assert status(monkeypatch) == Called(0, "no Job of cnn-jobs in namespace cnn-jobs\n", "")


def test_jobs_and_their_pods_without_mlflow(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    first = api.add_job(named("task2-job.yaml", "task2-first"))
    for code, reason in ((137, "OOMKilled"), (75, "")):
        api.end_pod(api.run_pod(first), code, reason)
    api.run_pod(first)
    second = api.add_job(named("task3e-job.yaml", "task3e-second"))
    state = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image x"}}
    api.run_pod(second, phase="Pending", containerStatuses=[{"name": "train", "state": state}])
    report = api.add_job(named("report-job.yaml", "report-third"))
    api.end_pod(api.run_pod(report), 2, message="error: experiment 'x' is not in MLflow")
    api.finish_job("report-third", "Failed", reason="PodFailurePolicy", message="Container report failed")
    api.add_job({**named("task2-job.yaml", "theirs"), "metadata": {"name": "theirs", "labels": {}}})
    done = status(monkeypatch)
    assert done.code == 0
    assert done.error.startswith("MLFLOW_TRACKING_URI is not set, runs are not shown: kubectl -n cnn-jobs port-forward")
    order = [done.stdout.index(name) for name in ("report-third", "task3e-second", "task2-first")]
    assert order == sorted(order)
    assert row(done, "task2-first ")[:5] == ["task2-first", "running", "Running", "-", "3"]
    assert row(done, "report-third ")[1:3] == ["failed", "Failed: exit code 2"]
    assert "ImagePullBackOff" in done.stdout
    assert "task3e-second-p0003: Back-off pulling image x" in done.stdout
    assert "report-third-p0004: error: experiment 'x' is not in MLflow" in done.stdout
    assert "report-third: PodFailurePolicy: Container report failed" in done.stdout
    assert "theirs" not in done.stdout


def test_each_index_has_a_row(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    job = api.add_job(DOCUMENTS["task2-seeds-job.yaml"])
    api.end_pod(api.run_pod(job, 3), 137, "OOMKilled")
    api.run_pod(job, 3)
    done = status(monkeypatch, "task2-seeds")
    assert row(done, "task2-seeds")[1] == "running, 0 of 5 done"
    assert row(done, "index 3")[1:4] == ["Running", "-", "2"]
    assert row(done, "index 4")[1:4] == ["-", "-", "0"]


def test_runs_are_found_by_the_uid_of_the_job_in_any_experiment(
    api: FakeApi, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    plain = api.add_job(DOCUMENTS["task2-job.yaml"])
    seeds = api.add_job(DOCUMENTS["task2-seeds-job.yaml"])
    uid = seeds["metadata"]["uid"]
    with recording(mlflow_uri, tmp_path, plain["metadata"]["uid"], experiment="elsewhere") as recorder:
        recorder.metrics({"val/accuracy": 0.5, "best/test_accuracy": 0.61234, "last/test_accuracy": 0.6}, 12)
        assert finish(recorder)
    ledger = '{"attempts": [], "useful": {"steps": 12, "device_seconds": 1.0}}'
    client(mlflow_uri).set_tag(recorder.run_id, "cnn_jobs.ledger", ledger)
    with recording(mlflow_uri, tmp_path, f"{uid}-1") as going:
        client(mlflow_uri).set_tag(going.run_id, "cnn_jobs.reason", "made by the test")
        done = status(monkeypatch)
        going.stop()
    assert (done.code, done.stderr) == (0, "")
    assert row(done, "task2 ") == ["task2", "waiting", "-", "FINISHED", "0", "12", "0.5000", "0.6123", "0.6000"]
    assert row(done, "index 1")[2] == "RUNNING"
    assert row(done, "index 0")[2] == "-"
    assert "task2-seeds index 1: made by the test" in done.stdout
    assert f"task2: {mlflow_uri} run {recorder.run_id}" in done.stdout
    api.finish_job("task2-seeds", "Failed", reason="FailedIndexes")
    shown = status(monkeypatch, "task2-seeds").stdout
    assert "task2-seeds index 1: RUNNING in MLflow, but its Job is over; 'cnn-jobs reap' repairs that" in shown


def test_the_run_of_a_distributed_job_is_in_the_first_row(
    api: FakeApi, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    job = api.add_job(DOCUMENTS["task2-ddp-job.yaml"])
    with recording(mlflow_uri, tmp_path, job["metadata"]["uid"]) as recorder:
        assert finish(recorder)
    done = status(monkeypatch)
    assert row(done, "index 0")[1:3] == ["-", "FINISHED"]
    assert row(done, "index 1")[1:3] == ["-", "-"]


def test_without_mlflow_only_the_runs_are_missing(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    from cnn_jobs.cli import jobs as module

    monkeypatch.setattr(module, "LOOK_UP_S", 1.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{unused()}")
    api.run_pod(api.add_job(DOCUMENTS["task2-job.yaml"]))
    done = status(monkeypatch)
    assert done.code == 0
    assert done.error.startswith("runs are not shown: MLflow at http://127.0.0.1:")
    assert row(done, "task2 ")[:4] == ["task2", "running", "Running", "-"]


def test_the_default_database_of_the_current_folder_is_not_used(
    api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    api.add_job(DOCUMENTS["task2-job.yaml"])
    assert status(monkeypatch).code == 0
    assert not (tmp_path / "mlflow.db").exists()


def test_an_unknown_job_is_exit_code_2(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    done = status(monkeypatch, "task2-x")
    assert (done.code, done.stdout) == (2, "")
    assert done.error == "error: no Job task2-x in namespace cnn-jobs; 'cnn-jobs status' lists those that are there"


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
def test_the_status_of_a_job(made: Any, state: str, message: str, over: bool) -> None:
    found = job_status(made)
    assert (found.state, found.message, found.over) == (state, message, over)


def test_run_keys_are_those_that_the_pods_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from cnn_jobs.system.environment import job_run_key

    monkeypatch.setenv("CNN_JOBS_JOB_UID", "u")
    found = job_status(job())
    assert (found.indexes, found.run_key(None)) == (0, job_run_key())
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    found = job_status(job(indexed=True))
    assert (found.indexes, found.run_key(3)) == (5, job_run_key())


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
        (pod("Running", ended(75)), "Running: exit code 75", "", True, True),
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
def test_the_status_of_a_pod(made: Any, text: str, message: str, started: bool, over: bool) -> None:
    found = pod_status(made, "train")
    assert (found.text, found.message, found.started, found.ended) == (text, message, started, over)


def test_a_pods_index_comes_from_annotation_or_label() -> None:
    name = "batch.kubernetes.io/job-completion-index"
    for place in ("annotations", "labels"):
        assert pod_status({"metadata": {"name": "p", place: {name: "12"}}}, "train").index == 12
    assert pod_status({"metadata": {"name": "p"}}, "train").index is None
