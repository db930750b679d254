"""A run that is cancelled: what its attempts make of that, and what is set right after them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnn_jobs.errors import CancelledRunError, InterruptedRunError
from cnn_jobs.tracking import ownership, run_status
from cnn_jobs.tracking.cancellation import JobRuns
from cnn_jobs.tracking.reap import reap
from cnn_jobs.tracking.recorder import JournalRecorder
from tests.helpers.runs import client
from tests.helpers.tracking import finish, recording, unused_address

UID = "0c5ce1c2-4ba5-4bb2-8a3c-5b34bb1bcd33"
WHY = "cancelled by me"
STOPPED = InterruptedRunError("stopped by SIGTERM")


def said(uri: str, run_id: str) -> tuple[str, str, str]:
    run = client(uri).get_run(run_id)
    return run.info.status, run.data.tags["cnn_jobs.state"], run.data.tags.get("cnn_jobs.reason", "")


def stop(recorder: JournalRecorder, error: BaseException = STOPPED) -> None:
    ending = run_status.status_after(error)
    assert ending
    assert recorder.finish(ending, 30)


def test_an_attempt_that_is_stopped_keeps_the_word(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path, UID) as recorder:
        (told,) = JobRuns(mlflow_uri, UID).mark_cancelled(WHY)
        assert told.run_id == recorder.run_id
        assert said(mlflow_uri, recorder.run_id) == ("RUNNING", "cancelled", WHY)
        stop(recorder)
    end = ("KILLED", "cancelled", f"{WHY}; stopped by SIGTERM")
    assert said(mlflow_uri, recorder.run_id) == end
    (settled,) = JobRuns(mlflow_uri, UID).settle(WHY)
    assert (settled.status, settled.state, settled.has_checkpoint) == ("KILLED", "cancelled", False)
    assert said(mlflow_uri, recorder.run_id) == end


def test_heartbeats_keep_it_too(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "HEARTBEAT_INTERVAL_S", 0.0)
    with recording(mlflow_uri, tmp_path, UID) as recorder:
        JobRuns(mlflow_uri, UID).mark_cancelled(WHY)
        client(mlflow_uri).set_terminated(recorder.run_id, "KILLED")
        for step in range(3):
            recorder.metrics({"train/loss": 1.0}, step)
        stop(recorder)
    assert said(mlflow_uri, recorder.run_id)[:2] == ("KILLED", "cancelled")


@pytest.mark.parametrize(
    ("error", "status", "state"),
    [(None, "FINISHED", "finished"), (ZeroDivisionError("made by the test"), "FAILED", "failed")],
)
def test_what_ended_by_itself_says_so(
    error: BaseException | None, status: str, state: str, mlflow_uri: str, tmp_path: Path
) -> None:
    runs = JobRuns(mlflow_uri, UID)
    with recording(mlflow_uri, tmp_path, UID) as recorder:
        runs.mark_cancelled(WHY)
        if error:
            stop(recorder, error)
        else:
            assert finish(recorder)
    assert said(mlflow_uri, recorder.run_id)[:2] == (status, state)
    if error is None:
        assert [each.status for each in runs.settle(WHY)] == ["FINISHED"]
        assert said(mlflow_uri, recorder.run_id) == ("FINISHED", "finished", "")
        client(mlflow_uri).set_tag(recorder.run_id, "cnn_jobs.state", "cancelled")  # a moment too late
        runs.settle(WHY)
        assert said(mlflow_uri, recorder.run_id) == ("FINISHED", "finished", "")


def test_runs_that_ended_before_are_left_as_they_are(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path, f"{UID}-0") as done:
        assert finish(done)
    with recording(mlflow_uri, tmp_path, f"{UID}-1") as failed:
        stop(failed, ZeroDivisionError("made by the test"))
    with recording(mlflow_uri, tmp_path, f"{UID}-2") as stopped:
        stop(stopped)
    with recording(mlflow_uri, tmp_path, "another") as other:
        runs = JobRuns(mlflow_uri, UID)
        assert [run.run_id for run in runs.mark_cancelled(WHY)] == [stopped.run_id]
        settled = runs.settle(WHY)
        other.stop()
    assert [(each.key[-1], each.status, each.state) for each in settled] == [
        ("0", "FINISHED", "finished"),
        ("1", "FAILED", "failed"),
        ("2", "KILLED", "cancelled"),
    ]
    assert said(mlflow_uri, other.run_id)[:2] == ("RUNNING", "running")


def test_a_run_whose_pod_was_killed_is_set_right(mlflow_uri: str, tmp_path: Path) -> None:
    runs = JobRuns(mlflow_uri, UID)
    with recording(mlflow_uri, tmp_path, f"{UID}-0") as told:
        runs.mark_cancelled(WHY)
        told.stop()
    with recording(mlflow_uri, tmp_path, f"{UID}-1") as late:  # it began after the others were told
        late.stop()
    settled = runs.settle(WHY)
    assert [(each.status, each.state) for each in settled] == [("KILLED", "cancelled")] * 2
    assert said(mlflow_uri, late.run_id) == ("KILLED", "cancelled", WHY)
    assert client(mlflow_uri).get_run(told.run_id).info.end_time


def test_no_attempt_follows_a_cancelled_run_but_one_that_means_it(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path, UID) as recorder:
        JobRuns(mlflow_uri, UID).mark_cancelled(WHY)
        stop(recorder)
    before = said(mlflow_uri, recorder.run_id)
    with (
        pytest.raises(CancelledRunError, match=f"run {UID} was cancelled; use another --run-key"),
        recording(mlflow_uri, tmp_path / "elsewhere", UID),
    ):
        pass
    assert said(mlflow_uri, recorder.run_id) == before
    run = client(mlflow_uri).get_run(recorder.run_id)
    assert run.data.tags["cnn_jobs.attempt"] == "1"


def test_reap_takes_a_cancelled_run_for_what_it_is(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path, UID) as recorder:
        recorder.stop()
    JobRuns(mlflow_uri, UID).mark_cancelled(WHY)
    (watched,) = reap(mlflow_uri, "tests", wait=lambda seconds: None)
    assert (watched.lost, watched.status) == (False, "KILLED")
    assert said(mlflow_uri, recorder.run_id) == ("KILLED", "cancelled", WHY)


def test_no_run_and_no_server(mlflow_uri: str) -> None:
    assert JobRuns(mlflow_uri, UID).mark_cancelled(WHY) == JobRuns(mlflow_uri, UID).settle(WHY) == []
    from cnn_jobs.errors import TrackingError

    with pytest.raises(TrackingError, match="does not answer"):
        JobRuns(unused_address(), UID, timeout_s=0.5).mark_cancelled(WHY)
