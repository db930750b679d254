"""``cnn-jobs status``: Jobs, pods and runs side by side."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.calls import Called, call
from tests.cluster.fake_api import FakeApi
from tests.cluster.job_files import DOCUMENTS
from tests.helpers.tracking import client, finish, recording, unused_address


def status(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Called:
    return call(monkeypatch, "status", *arguments)


def named(file: str, name: str) -> dict[str, Any]:
    job = copy.deepcopy(DOCUMENTS[file])
    job["metadata"]["name"] = name
    return job


def row(done: Called, start: str) -> list[str]:
    """The cells of the only row that begins so."""
    (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith(start)]
    return re.split(r"\s{2,}", line.strip())


def test_no_job_is_said(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_indexes_have_a_row_each(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    job = api.add_job(DOCUMENTS["task2-seeds-job.yaml"])
    api.end_pod(api.run_pod(job, 3), 137, "OOMKilled")
    api.run_pod(job, 3)
    done = status(monkeypatch, "task2-seeds")
    assert row(done, "task2-seeds")[1] == "running, 0 of 5 done"
    assert row(done, "index 3")[1:4] == ["Running", "-", "2"]
    assert row(done, "index 4")[1:4] == ["-", "-", "0"]


def test_runs_are_found_by_the_jobs_uid_in_any_experiment(
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
    told = status(monkeypatch, "task2-seeds").stdout
    assert "task2-seeds index 1: RUNNING in MLflow, but its Job is over; 'cnn-jobs reap' sets that right" in told


def test_mlflow_that_is_away_takes_nothing_but_the_runs(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    from cnn_jobs.cli import jobs as module

    monkeypatch.setattr(module, "ASK_S", 1.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unused_address())
    api.run_pod(api.add_job(DOCUMENTS["task2-job.yaml"]))
    done = status(monkeypatch)
    assert done.code == 0
    assert done.error.startswith("runs are not shown: MLflow at http://127.0.0.1:")
    assert row(done, "task2 ")[:4] == ["task2", "running", "Running", "-"]


def test_the_database_of_the_present_folder_is_not_asked(
    api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    api.add_job(DOCUMENTS["task2-job.yaml"])
    assert status(monkeypatch).code == 0
    assert not (tmp_path / "mlflow.db").exists()


def test_a_job_that_is_not_there_is_exit_code_2(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    done = status(monkeypatch, "task2-x")
    assert (done.code, done.stdout) == (2, "")
    assert done.error == "error: no Job task2-x in namespace cnn-jobs; 'cnn-jobs status' lists those that are there"
