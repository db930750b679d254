"""The upload of a journal to MLflow: every record once, whatever fails in between."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import threading
from pathlib import Path

import pytest

from cnn_jobs.errors import AnotherAttemptError, DeletedExperimentError, DiskFullError, RejectedRecordsError
from cnn_jobs.tracking import ownership
from cnn_jobs.tracking import recorder as recorder_module
from cnn_jobs.tracking.connection import OutageError, RefusalError
from cnn_jobs.tracking.delivery import CursorFile
from cnn_jobs.tracking.recorder import JournalRecorder
from cnn_jobs.tracking.replay import replay
from tests.helpers.servers import unused_url
from tests.helpers.tracking import client, fail_calls, finish, finish_after, only_run, recording, rows, status_of
from tests.helpers.waiting import until


def test_child_names_its_parent_even_if_that_is_younger(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path, "child", parent_key="parent") as child:
        with recording(mlflow_uri, tmp_path, "parent") as parent:
            assert finish(parent)
        assert finish(child)
    with recording(mlflow_uri, tmp_path, "second", parent_key="parent") as second:
        pass
    for each in (child, second):
        assert client(mlflow_uri).get_run(each.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def experiment_id(uri: str) -> str:
    return str(client(uri).get_experiment_by_name("tests").experiment_id)


def test_experiment_that_is_deleted_during_a_run_cancels_it(mlflow_uri: str, tmp_path: Path) -> None:
    """Neither the run nor the experiment is created again: that would restore runs of others, too."""
    with recording(mlflow_uri, tmp_path) as recorder:
        run_id = until(lambda: recorder.run_id)
        client(mlflow_uri).delete_experiment(experiment_id(mlflow_uri))
        recorder.metrics({"train/loss": 1.0}, 1)
        with pytest.raises(DeletedExperimentError, match="experiment 'tests' is deleted") as caught:
            finish(recorder)
    assert caught.value.exit_code == 2
    assert client(mlflow_uri).get_experiment_by_name("tests").lifecycle_stage == "deleted"
    assert client(mlflow_uri).get_run(run_id).info.lifecycle_stage == "deleted"


def test_run_in_a_deleted_experiment_is_refused(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path, "first") as first:
        assert finish(first)
    deleted = experiment_id(mlflow_uri)
    client(mlflow_uri).delete_experiment(deleted)
    with (
        pytest.raises(DeletedExperimentError, match=f"mlflow experiments restore --experiment-id {deleted}"),
        recording(mlflow_uri, tmp_path, "second") as second,
    ):
        finish(second)


def test_experiment_that_is_renamed_during_a_run_keeps_it(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path) as recorder:
        run_id = until(lambda: recorder.run_id)
        client(mlflow_uri).rename_experiment(experiment_id(mlflow_uri), "renamed")
        recorder.metrics({"train/loss": 1.0}, 1)
        assert finish(recorder)
    assert recorder.run_id == run_id
    assert status_of(mlflow_uri, run_id)[0] == "FINISHED"
    assert rows(mlflow_uri, run_id) == [(1, 1.0)]
    assert client(mlflow_uri).get_experiment_by_name("tests") is None


def test_run_deleted_by_its_user_is_created_again(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path) as recorder:
        recorder.metrics({"train/loss": 1.0}, 1)
        first = until(lambda: recorder.run_id)
        until(lambda: rows(mlflow_uri, first))
        client(mlflow_uri).delete_run(first)
        recorder.metrics({"train/loss": 2.0}, 2)
        assert finish(recorder)
    assert recorder.run_id != first
    assert rows(mlflow_uri, recorder.run_id) == [(1, 1.0), (2, 2.0)]


# -- outages -----------------------------------------------------------------------------------------------------------


def test_nothing_is_lost_in_an_outage(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults, failed = [OutageError("away")] * 3, threading.Event()

    def fault() -> Exception | None:
        failed.set()
        return faults.pop() if faults else None

    fail_calls(monkeypatch, "log_metrics", fault)
    with recording(mlflow_uri, tmp_path) as recorder:
        for step in (1, 2, 3):
            recorder.metrics({"train/loss": float(step)}, step)
        assert failed.wait(10)
        recorder.metrics({"train/loss": 4.0}, 4)
        assert finish(recorder)
    assert rows(mlflow_uri, recorder.run_id) == [(step, float(step)) for step in (1, 2, 3, 4)]
    assert not faults


def test_artifact_store_that_is_away_does_not_delay_metrics(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_calls(monkeypatch, "upload", lambda: OutageError("the store is away"))
    with recording(mlflow_uri, tmp_path) as recorder:
        path = tmp_path / "key" / "a.txt"
        path.write_text("text")
        recorder.artifact(path, "a.txt")
        recorder.metrics({"train/loss": 1.0}, 1)
        assert not finish(recorder, 0.5)
    assert rows(mlflow_uri, recorder.run_id) == [(1, 1.0)]
    assert status_of(mlflow_uri, recorder.run_id)[0] == "RUNNING"


def test_steps_quicker_than_a_call_do_not_delay_checkpoints(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, uploaded = itertools.count(2), threading.Event()
    with recording(mlflow_uri, tmp_path) as recorder:

        def record_another_step() -> None:
            if not uploaded.is_set():
                recorder.metrics({"train/loss": 1.0}, next(steps))

        fail_calls(monkeypatch, "log_metrics", record_another_step)
        fail_calls(monkeypatch, "upload", uploaded.set)
        path = tmp_path / "key" / "last.pt"
        path.write_text("weights")
        recorder.artifact(path, "checkpoints/last.pt", passing=True)
        recorder.metrics({"train/loss": 1.0}, 1)
        assert uploaded.wait(10)
        assert finish(recorder)
    assert [step for step, _ in rows(mlflow_uri, recorder.run_id)] == list(range(1, next(steps)))


def test_every_answer_over_a_bad_connection_counts(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of four calls fail: a round that needs thirty histories at once would never end."""
    values = {f"val/metric_{number}": float(number) for number in range(30)}
    with recording(mlflow_uri, tmp_path / "first") as recorder:
        recorder.metrics(values, 1)
        assert finish_after(recorder)
    calls = itertools.count()
    monkeypatch.setattr(recorder_module, "FIRST_PAUSE_S", 0.002)
    threads = fail_calls(monkeypatch, "history", lambda: OutageError("lost") if next(calls) % 4 else None)
    with recording(mlflow_uri, tmp_path / "second") as recorder:
        recorder.metrics(values, 1)
        assert finish(recorder)
    assert len(threads) == 4 * 30 - 3
    assert all(len(rows(mlflow_uri, recorder.run_id, key)) == 1 for key in values)


def test_unwritable_cursor_does_not_end_the_upload(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: CursorFile, uri: str, cursor: object) -> None:
        raise DiskFullError("no room")

    monkeypatch.setattr(CursorFile, "save", full)
    with recording(mlflow_uri, tmp_path) as recorder:
        recorder.metrics({"train/loss": 1.0}, 1)
        assert finish(recorder)
    assert rows(mlflow_uri, recorder.run_id) == [(1, 1.0)]


# -- ownership ---------------------------------------------------------------------------------------------------------


def test_superseded_attempt_stops_and_changes_nothing(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "HEARTBEAT_INTERVAL_S", 0.0)
    with recording(mlflow_uri, tmp_path) as recorder:
        # The number first: the uploader may look between the two.
        client(mlflow_uri).set_tag(recorder.run_id, "cnn_jobs.attempt", "2")
        client(mlflow_uri).set_tag(recorder.run_id, "cnn_jobs.attempt_id", "another")
        recorder.metrics({"train/loss": 1.0}, 1)
        until(lambda: recorder.failure)
        with pytest.raises(AnotherAttemptError, match="attempt 2 has taken over"):
            finish(recorder)
        recorder.stop()
    assert status_of(mlflow_uri, recorder.run_id)[0] == "RUNNING"
    assert rows(mlflow_uri, recorder.run_id) in ([], [(1, 1.0)])


def test_run_declared_lost_sets_itself_to_running(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording(mlflow_uri, tmp_path) as recorder:
        client(mlflow_uri).set_terminated(recorder.run_id, "FAILED")
        client(mlflow_uri).set_tag(recorder.run_id, "cnn_jobs.state", "lost")
        monkeypatch.setattr(ownership, "HEARTBEAT_INTERVAL_S", 0.0)
        until(lambda: status_of(mlflow_uri, recorder.run_id)[0] == "RUNNING")
        assert finish(recorder)
    assert status_of(mlflow_uri, recorder.run_id)[:2] == ("FINISHED", "finished")
    assert int(client(mlflow_uri).get_run(recorder.run_id).data.tags["cnn_jobs.heartbeat"]) > 0


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_refused_record_is_kept_and_fails_the_run(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path) as recorder:
        recorder.metrics({"train/loss": 1.0}, 1)
        recorder.metrics({"bad#name": 2.0, "train/loss": 2.0}, 2)
        recorder.metrics({"train/loss": 3.0}, 3)
        with pytest.raises(RejectedRecordsError, match="MLflow refused 1 records") as caught:
            finish(recorder)
    assert caught.value.exit_code == 1
    (line,) = (tmp_path / "key" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["content"]["key"] == "bad#name"
    *status, reason = status_of(mlflow_uri, recorder.run_id)
    assert status == ["FAILED", "failed"]
    assert "refused 1 records" in reason
    # All the others were sent, also those of the same call.
    assert rows(mlflow_uri, recorder.run_id) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_refusing_server_rejects_no_record(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recording(mlflow_uri, tmp_path) as recorder:
        for name in ("find", "log_metrics"):
            fail_calls(monkeypatch, name, lambda: RefusalError("403"))
        recorder.metrics({"train/loss": 1.0}, 1)
        until(lambda: recorder.failure)
        with pytest.raises(RefusalError, match="403"):
            finish(recorder)
    assert not (tmp_path / "key" / "rejected.jsonl").exists()


def test_run_with_refused_records_ends_after_all_other_records(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        with recording(mlflow_uri, tmp_path) as first:
            fail_calls(patch, "log_metrics", lambda: RefusalError("not this one"))
            fail_calls(patch, "upload", lambda: OutageError("away"))
            (tmp_path / "key" / "a.txt").write_text("text")
            first.metrics({"train/loss": 1.0}, 1)
            first.artifact(tmp_path / "key" / "a.txt", "a.txt")
            assert not finish(first, 0.5)
        # Its thread ends after the present round; until then calls must keep failing.
        first._thread.join(60)
        assert not first._thread.is_alive()
    assert status_of(mlflow_uri, first.run_id)[0] == "RUNNING"
    with recording(mlflow_uri, tmp_path) as second, pytest.raises(RejectedRecordsError):
        finish(second)
    assert status_of(mlflow_uri, first.run_id)[0] == "FAILED"
    assert [each.path for each in client(mlflow_uri).list_artifacts(first.run_id)] == ["a.txt"]


def test_refusals_count_once_and_only_for_their_server(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_template_db: Path
) -> None:
    with monkeypatch.context() as patch:
        fail_calls(patch, "log_metrics", lambda: RefusalError("not this one"))
        for _ in range(2):
            with recording(mlflow_uri, tmp_path) as recorder:
                recorder.metrics({"train/loss": 1.0}, 1)
                with pytest.raises(RejectedRecordsError, match="MLflow refused 1 records"):
                    finish(recorder)
            (tmp_path / "key" / "shipped.json").unlink()  # as after a kill before the cursor was saved
    shutil.copy(mlflow_template_db, tmp_path / "other.db")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    replayed = replay(tmp_path / "key", other, 30)
    assert replayed.rejected == ""
    assert only_run(other, "tests").info.status == "FINISHED"


# -- repetitions -------------------------------------------------------------------------------------------------------


def test_rows_from_another_journal_are_not_duplicated(mlflow_uri: str, tmp_path: Path) -> None:
    values = {"nan": math.nan, "infinity": math.inf, "minus infinity": -math.inf, "number": 0.1}
    for machine in ("first", "second", "third"):
        with recording(mlflow_uri, tmp_path / machine) as recorder:
            recorder.metrics(values, 1)
            recorder.metrics(dict.fromkeys(values, 0.5), 2)
            assert finish_after(recorder)
    for key in values:
        (first, second) = rows(mlflow_uri, recorder.run_id, key)
        assert (first[0], second) == (1, (2, 0.5))


def test_repetition_is_not_progress(mlflow_uri: str, tmp_path: Path) -> None:
    """Otherwise an attempt that always loses its disk would show progress each time, and end with exit code 75 for
    ever."""

    def attempt(folder: Path) -> JournalRecorder:
        with recording(mlflow_uri, folder) as recorder:
            (folder / "key" / "lineage.json").write_text("{}")
            recorder.params({"lr": 0.1})
            recorder.artifact(folder / "key" / "lineage.json", "lineage.json")
            recorder.metrics({"train/loss": 1.0}, 1)
            assert finish_after(recorder)
        return recorder

    assert attempt(tmp_path / "first").progress == 2  # the param and the row
    assert attempt(tmp_path / "second").progress == 0


def test_files_left_by_an_earlier_attempt_are_progress(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(unused_url(), tmp_path) as first:
        (tmp_path / "key" / "a.txt").write_text("text")
        first.artifact(tmp_path / "key" / "a.txt", "a.txt")
        assert not finish_after(first, deadline_s=0.1)
    with recording(mlflow_uri, tmp_path) as second:
        assert finish_after(second)
    assert second.progress == 1
