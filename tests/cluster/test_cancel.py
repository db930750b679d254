"""``cnn-jobs cancel``: MLflow is notified, then the Job is deleted, then the final states are printed."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cnn_jobs.cluster import jobs as module
from cnn_jobs.errors import InterruptedRunError
from cnn_jobs.tracking import run_status
from tests.helpers.calls import Called, call
from tests.helpers.job_files import DOCUMENTS
from tests.helpers.kubernetes_api import FakeApi
from tests.helpers.kustomize import STACK, find
from tests.helpers.servers import unused
from tests.helpers.tracking import client, recording


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.02)


def cancel(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Called:
    return call(monkeypatch, "cancel", *arguments)


def state(uri: str, run_id: str) -> tuple[str, str]:
    run = client(uri).get_run(run_id)
    return run.info.status, run.data.tags["cnn_jobs.state"]


def test_mlflow_is_notified_before_the_deletion_and_read_after_the_pods_are_gone(
    api: FakeApi, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    job = api.add_job(DOCUMENTS["task2-job.yaml"])
    api.run_pod(job)
    seen: list[Any] = []
    with recording(mlflow_uri, tmp_path, job["metadata"]["uid"]) as recorder:

        def stop(deleted: dict[str, Any]) -> None:
            seen.append(state(mlflow_uri, recorder.run_id))
            time.sleep(0.2)  # of the grace period
            ending = run_status.status_after(InterruptedRunError("stopped by SIGTERM"))
            assert ending
            recorder.finish(ending, 30)
            api.remove(deleted)

        api.on_delete = stop
        done = cancel(monkeypatch, "task2")
    assert done.code == 0, done.stderr
    assert seen == [("RUNNING", "cancelled")]
    assert state(mlflow_uri, recorder.run_id) == ("KILLED", "cancelled")
    assert api.delete_options[0]["preconditions"] == {"uid": job["metadata"]["uid"]}
    first, run, url = done.stdout.splitlines()
    assert first == "Job task2 is gone"
    assert run.startswith(f"run a run ({job['metadata']['uid']}): KILLED, cancelled; no checkpoint of it")
    assert recorder.run_id in url


def test_a_job_without_pods_a_missing_job_and_one_that_is_over(
    api: FakeApi, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    api.add_job(DOCUMENTS["task2-job.yaml"])
    done = cancel(monkeypatch, "task2")
    assert (done.code, api.jobs) == (0, {})
    assert done.stdout.splitlines()[1] == "MLflow has no run of it: it was cancelled before it began"
    again = cancel(monkeypatch, "task2")
    assert again.code == 2
    assert again.error == "error: no Job task2 in namespace cnn-jobs; 'cnn-jobs status' lists those that are there"
    api.add_job(DOCUMENTS["task2-job.yaml"])
    api.finish_job("task2")
    over = cancel(monkeypatch, "task2")
    assert over == Called(0, "Job task2 is over (complete): there is nothing to cancel\n", "")
    assert "task2" in api.jobs


@pytest.mark.parametrize(("uri", "code", "error"), [
    ("", 2, "MLFLOW_TRACKING_URI is not set, and MLflow must be notified: kubectl -n cnn-jobs port-forward"),
    ("away", 1, "nothing was stopped. 'kubectl -n cnn-jobs delete job task2' stops it without recording that"),
])  # fmt: skip
def test_nothing_is_stopped_if_mlflow_cannot_be_notified(
    uri: str, code: int, error: str, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cnn_jobs.tracking.cancellation import JobRuns

    monkeypatch.setattr(JobRuns.__init__, "__defaults__", (0.5,))
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{unused()}")
    api.run_pod(api.add_job(DOCUMENTS["task2-job.yaml"]))
    done = cancel(monkeypatch, "task2")
    assert (done.code, done.stdout) == (code, "")
    assert error in done.error
    assert ("delete", "jobs") not in api.calls


def test_a_job_without_runs_needs_no_mlflow(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.run_pod(api.add_job(DOCUMENTS["report-job.yaml"]))
    done = cancel(monkeypatch, "report")
    assert (done.code, done.stdout, api.jobs) == (0, "Job report is gone\n", {})


def test_pods_that_remain_after_the_timeout_are_named(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = api.run_pod(api.add_job(DOCUMENTS["report-job.yaml"]))
    api.on_delete = lambda job: None
    done = cancel(monkeypatch, "report", "--timeout", "0.3")
    assert (done.code, done.stdout) == (1, "")
    assert f"not gone after 0 s: pod {pod} (Running)" in done.stderr
    # A second call waits for the same deletion.
    threading.Timer(0.3, lambda: api.remove(api.jobs["report"])).start()
    assert cancel(monkeypatch, "report", "--timeout", "20").code == 0


def test_a_temporarily_unavailable_api_server_is_tolerated(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.run_pod(api.add_job(DOCUMENTS["report-job.yaml"]))

    def stop(deleted: dict[str, Any]) -> None:
        api.fail("GET", "/pods", 503, "apiserver not ready", times=3)
        api.remove(deleted)

    api.on_delete = stop
    assert cancel(monkeypatch, "report", "--timeout", "20").code == 0
    assert not api.faults


def test_a_new_job_of_the_same_name_is_not_deleted(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.add_job(DOCUMENTS["report-job.yaml"])

    def replace(deleted: dict[str, Any]) -> None:
        api.remove(deleted)
        api.add_job(DOCUMENTS["report-job.yaml"])

    api.on_delete = replace
    assert cancel(monkeypatch, "report").code == 0
    until_there = time.monotonic() + 10
    while "report" not in api.jobs and time.monotonic() < until_there:
        time.sleep(0.02)
    assert "deletionTimestamp" not in api.jobs["report"]["metadata"]


def test_the_role_allows_exactly_what_the_four_commands_do(
    api: FakeApi, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    api.groups.append("kueue.x-k8s.io")
    assert call(monkeypatch, "submit", "task2", "--queue", "q").code == 0
    ((name, job),) = api.jobs.items()
    pod = api.run_pod(job)
    assert call(monkeypatch, "status").code == call(monkeypatch, "status", name).code == 0
    assert call(monkeypatch, "logs", name).code == 0
    api.end_pod(pod)
    threading.Timer(2.0, lambda: api.finish_job(name)).start()
    assert call(monkeypatch, "logs", "-f", name).code == 0
    job["status"] = {}
    assert cancel(monkeypatch, name).code == 0
    assert api.jobs == {}
    role = find(STACK, "Role", "cnn-jobs-submit")
    allowed = {(verb, resource) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    assert set(api.calls) == allowed
