"""Cancelled runs: their attempts keep the mark, and their status is corrected once the pods are gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnn_jobs.errors import CancelledRunError, TrackingError
from cnn_jobs.tracking import ownership
from cnn_jobs.tracking.cancellation import JobRuns
from cnn_jobs.tracking.reap import reap
from tests.helpers.servers import unused_url
from tests.helpers.tracking import client, finish, finish_after, recording, status_of

UID = "0c5ce1c2-4ba5-4bb2-8a3c-5b34bb1bcd33"
REASON = "cancelled by me"
BUG = ZeroDivisionError("made by the test")


def test_stopped_attempt_keeps_the_mark(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path, UID) as recorder:
        (marked,) = JobRuns(mlflow_uri, UID).mark_cancelled(REASON)
        assert marked.run_id == recorder.run_id
        assert status_of(mlflow_uri, recorder.run_id) == ("RUNNING", "cancelled", REASON)
        assert finish_after(recorder)
    expected = ("KILLED", "cancelled", f"{REASON}; stopped by SIGTERM")
    assert status_of(mlflow_uri, recorder.run_id) == expected
    (settled,) = JobRuns(mlflow_uri, UID).settle(REASON)
    assert (settled.status, settled.state, settled.has_checkpoint) == ("KILLED", "cancelled", False)
    assert status_of(mlflow_uri, recorder.run_id) == expected


def test_heartbeats_keep_the_mark(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "HEARTBEAT_INTERVAL_S", 0.0)
    with recording(mlflow_uri, tmp_path, UID) as recorder:
        JobRuns(mlflow_uri, UID).mark_cancelled(REASON)
        client(mlflow_uri).set_terminated(recorder.run_id, "KILLED")
        for step in range(3):
            recorder.metrics({"train/loss": 1.0}, step)
        assert finish_after(recorder)
    assert status_of(mlflow_uri, recorder.run_id)[:2] == ("KILLED", "cancelled")


def test_run_that_fails_while_it_is_cancelled_is_failed(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path, UID) as recorder:
        JobRuns(mlflow_uri, UID).mark_cancelled(REASON)
        assert finish_after(recorder, BUG)
    assert status_of(mlflow_uri, recorder.run_id)[:2] == ("FAILED", "failed")


def test_run_that_finishes_while_it_is_cancelled_is_finished(mlflow_uri: str, tmp_path: Path) -> None:
    runs = JobRuns(mlflow_uri, UID)
    with recording(mlflow_uri, tmp_path, UID) as recorder:
        runs.mark_cancelled(REASON)
        assert finish(recorder)
    assert [each.status for each in runs.settle(REASON)] == ["FINISHED"]
    assert status_of(mlflow_uri, recorder.run_id) == ("FINISHED", "finished", "")
    client(mlflow_uri).set_tag(recorder.run_id, "cnn_jobs.state", "cancelled")  # a mark that arrives too late
    runs.settle(REASON)
    assert status_of(mlflow_uri, recorder.run_id) == ("FINISHED", "finished", "")


def test_ended_runs_and_other_jobs_are_not_marked(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path, f"{UID}-0") as done:
        assert finish(done)
    with recording(mlflow_uri, tmp_path, f"{UID}-1") as failed:
        assert finish_after(failed, BUG)
    with recording(mlflow_uri, tmp_path, f"{UID}-2") as stopped:
        assert finish_after(stopped)
    with recording(mlflow_uri, tmp_path, "another") as other:
        runs = JobRuns(mlflow_uri, UID)
        assert [run.run_id for run in runs.mark_cancelled(REASON)] == [stopped.run_id]
        settled = runs.settle(REASON)
        other.stop()
    assert [(each.key[-1], each.status, each.state) for each in settled] == [
        ("0", "FINISHED", "finished"),
        ("1", "FAILED", "failed"),
        ("2", "KILLED", "cancelled"),
    ]
    assert status_of(mlflow_uri, other.run_id)[:2] == ("RUNNING", "running")


def test_runs_of_killed_pods_are_settled(mlflow_uri: str, tmp_path: Path) -> None:
    runs = JobRuns(mlflow_uri, UID)
    with recording(mlflow_uri, tmp_path, f"{UID}-0") as marked:
        runs.mark_cancelled(REASON)
        marked.stop()
    with recording(mlflow_uri, tmp_path, f"{UID}-1") as late:  # begins after the others were marked
        late.stop()
    settled = runs.settle(REASON)
    assert [(each.status, each.state) for each in settled] == [("KILLED", "cancelled")] * 2
    assert status_of(mlflow_uri, late.run_id) == ("KILLED", "cancelled", REASON)
    assert client(mlflow_uri).get_run(marked.run_id).info.end_time


def test_next_attempt_of_a_cancelled_run_is_refused(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path, UID) as recorder:
        JobRuns(mlflow_uri, UID).mark_cancelled(REASON)
        assert finish_after(recorder)
    before = status_of(mlflow_uri, recorder.run_id)
    with (
        pytest.raises(CancelledRunError, match=f"run {UID} was cancelled; use another --run-key"),
        recording(mlflow_uri, tmp_path / "elsewhere", UID),
    ):
        pass
    assert status_of(mlflow_uri, recorder.run_id) == before
    assert client(mlflow_uri).get_run(recorder.run_id).data.tags["cnn_jobs.attempt"] == "1"


def test_reap_sets_a_cancelled_run_to_killed(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path, UID) as recorder:
        recorder.stop()
    JobRuns(mlflow_uri, UID).mark_cancelled(REASON)
    (watched,) = reap(mlflow_uri, "tests", wait=lambda seconds: None)
    assert (watched.lost, watched.status) == (False, "KILLED")
    assert status_of(mlflow_uri, recorder.run_id) == ("KILLED", "cancelled", REASON)


def test_job_without_runs_and_server_that_is_away(mlflow_uri: str) -> None:
    assert JobRuns(mlflow_uri, UID).mark_cancelled(REASON) == JobRuns(mlflow_uri, UID).settle(REASON) == []
    with pytest.raises(TrackingError, match="does not answer"):
        JobRuns(unused_url(), UID, timeout_s=0.5).mark_cancelled(REASON)
