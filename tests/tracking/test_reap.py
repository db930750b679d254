"""Runs that MLflow shows as RUNNING though their process is gone."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from cnn_jobs.errors import UserError
from cnn_jobs.tracking.client import RemoteRun, TrackingClient
from cnn_jobs.tracking.reap import reap
from tests.helpers.tracking import client, finish, recording, status_of


def abandoned_run(uri: str, folder: Path) -> str:
    """The id of a run whose process is gone."""
    with recording(uri, folder, uuid.uuid4().hex) as recorder:
        recorder.stop()
    return recorder.run_id


def test_only_runs_without_a_heartbeat_are_lost(mlflow_uri: str, tmp_path: Path) -> None:
    dead, alive, ending = (abandoned_run(mlflow_uri, tmp_path) for _ in range(3))
    with recording(mlflow_uri, tmp_path, "done") as recorder:
        assert finish(recorder)
    foreign = client(mlflow_uri).create_run(client(mlflow_uri).get_experiment_by_name("tests").experiment_id)
    waited = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        client(mlflow_uri).set_tag(alive, "cnn_jobs.heartbeat", "7")
        client(mlflow_uri).set_terminated(ending, "KILLED")

    watched = {each.run.run_id: each for each in reap(mlflow_uri, "tests", wait=wait)}
    assert waited == [60.0]
    assert set(watched) == {dead, alive, ending}
    assert (watched[dead].lost, watched[alive].lost, watched[ending].lost) == (True, False, False)
    *lost, reason = status_of(mlflow_uri, dead)
    assert lost == ["FAILED", "lost"]
    assert "no heartbeat from attempt 1 for 60 s" in reason
    assert status_of(mlflow_uri, alive)[:2] == ("RUNNING", "running")
    assert status_of(mlflow_uri, ending)[0] == "KILLED"
    assert status_of(mlflow_uri, recorder.run_id)[:2] == ("FINISHED", "finished")
    assert client(mlflow_uri).get_run(foreign.info.run_id).info.status == "RUNNING"


def test_run_with_a_new_attempt_is_alive(mlflow_uri: str, tmp_path: Path) -> None:
    run_id = abandoned_run(mlflow_uri, tmp_path)

    def wait(seconds: float) -> None:
        client(mlflow_uri).set_tag(run_id, "cnn_jobs.attempt_id", "the next one")

    (watched,) = reap(mlflow_uri, "tests", wait=wait)
    assert not watched.lost
    assert status_of(mlflow_uri, run_id)[:2] == ("RUNNING", "running")


def test_without_running_runs_reap_does_not_wait(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path) as recorder:
        assert finish(recorder)
    assert reap(mlflow_uri, "tests", wait=lambda seconds: pytest.fail("waited")) == []


def test_unknown_experiment_is_an_error(mlflow_uri: str) -> None:
    assert reap(mlflow_uri, "nope", missing_ok=True) == []
    with pytest.raises(UserError, match="experiment 'nope' is not in MLflow"):
        reap(mlflow_uri, "nope")


def test_run_that_ends_between_two_looks_keeps_its_status(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = abandoned_run(mlflow_uri, tmp_path)
    real = TrackingClient.get

    def get(self: TrackingClient, wanted: str) -> RemoteRun | None:
        client(mlflow_uri).set_terminated(run_id, "FINISHED")
        return real(self, wanted)

    monkeypatch.setattr(TrackingClient, "get", get)
    (watched,) = reap(mlflow_uri, "tests", wait=lambda seconds: None)
    assert not watched.lost
    assert client(mlflow_uri).get_run(run_id).info.status == "FINISHED"
