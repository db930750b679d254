"""Runs that MLflow shows as RUNNING though their process is gone."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from cnn_jobs.errors import UserError
from cnn_jobs.tracking.client import RemoteRun, TrackingClient
from cnn_jobs.tracking.reap import reap
from tests.helpers.runs import client
from tests.helpers.tracking import finish, recording


def status(uri: str, run_id: str) -> tuple[str, str]:
    run = client(uri).get_run(run_id)
    return run.info.status, run.data.tags["cnn_jobs.state"]


def left_running(uri: str, folder: Path) -> str:
    """A run whose process is gone without a word."""
    with recording(uri, folder, uuid.uuid4().hex) as recorder:
        recorder.stop()
    return recorder.run_id


def test_only_those_whose_heartbeat_stands_still_are_lost(mlflow_uri: str, tmp_path: Path) -> None:
    dead, alive, ending = (left_running(mlflow_uri, tmp_path) for _ in range(3))
    with recording(mlflow_uri, tmp_path, "done") as recorder:
        assert finish(recorder)
    stranger = client(mlflow_uri).create_run(client(mlflow_uri).get_experiment_by_name("tests").experiment_id)
    waited = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        client(mlflow_uri).set_tag(alive, "cnn_jobs.heartbeat", "7")
        client(mlflow_uri).set_terminated(ending, "KILLED")

    watched = {each.run.run_id: each for each in reap(mlflow_uri, "tests", wait=wait)}
    assert waited == [60.0]
    assert set(watched) == {dead, alive, ending}
    assert (watched[dead].lost, watched[alive].lost, watched[ending].lost) == (True, False, False)
    assert status(mlflow_uri, dead) == ("FAILED", "lost")
    assert "no heartbeat from attempt 1 for 60 s" in client(mlflow_uri).get_run(dead).data.tags["cnn_jobs.reason"]
    assert status(mlflow_uri, alive) == ("RUNNING", "running")
    assert client(mlflow_uri).get_run(ending).info.status == "KILLED"
    assert status(mlflow_uri, recorder.run_id) == ("FINISHED", "finished")
    assert client(mlflow_uri).get_run(stranger.info.run_id).info.status == "RUNNING"


def test_a_new_attempt_under_the_same_key_is_a_sign_of_life(mlflow_uri: str, tmp_path: Path) -> None:
    run_id = left_running(mlflow_uri, tmp_path)

    def wait(seconds: float) -> None:
        client(mlflow_uri).set_tag(run_id, "cnn_jobs.attempt_id", "the next one")

    (watched,) = reap(mlflow_uri, "tests", wait=wait)
    assert not watched.lost
    assert status(mlflow_uri, run_id) == ("RUNNING", "running")


def test_nothing_to_do_is_done_at_once(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path) as recorder:
        assert finish(recorder)
    assert reap(mlflow_uri, "tests", wait=lambda seconds: pytest.fail("waited")) == []


def test_an_unknown_experiment_is_a_mistake(mlflow_uri: str) -> None:
    assert reap(mlflow_uri, "nope", missing_ok=True) == []
    with pytest.raises(UserError, match="experiment 'nope' is not in MLflow"):
        reap(mlflow_uri, "nope")


def test_a_run_that_ends_while_others_are_looked_at_is_left_alone(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = left_running(mlflow_uri, tmp_path)
    real = TrackingClient.get

    def get(self: TrackingClient, asked: str) -> RemoteRun | None:
        client(mlflow_uri).set_terminated(run_id, "FINISHED")
        return real(self, asked)

    monkeypatch.setattr(TrackingClient, "get", get)
    (watched,) = reap(mlflow_uri, "tests", wait=lambda seconds: None)
    assert not watched.lost
    assert client(mlflow_uri).get_run(run_id).info.status == "FINISHED"
