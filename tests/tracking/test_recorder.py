"""One run in a real MLflow database."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnn_jobs.errors import AnotherAttemptError, DiskFullError, RejectedRecordsError, ThreadError, TrackingError
from cnn_jobs.tracking import recorder as module
from cnn_jobs.tracking import run_status
from cnn_jobs.tracking import uploader as uploader_module
from cnn_jobs.tracking.client import TrackingClient
from cnn_jobs.tracking.connection import OutageError, RefusalError
from cnn_jobs.tracking.delivery import Cursor, CursorFile
from cnn_jobs.tracking.recorder import JournalRecorder
from cnn_jobs.tracking.records import DatasetInput
from cnn_jobs.tracking.replay import replay
from cnn_jobs.tracking.run_status import RunStatus
from tests.helpers.runs import client
from tests.helpers.tracking import answering, finish, recording, rows, unused_address

STOPPED = RunStatus("KILLED", "interrupted", "stopped by SIGTERM", 0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UPLOAD_INTERVAL_S", 0.05)
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.05)


def failing(monkeypatch: pytest.MonkeyPatch, name: str, fault: Callable[[], Exception | None]) -> list[str]:
    """A call of ``TrackingClient`` raises what ``fault`` gives, if anything. Returns the calling threads' names."""
    real, threads = getattr(TrackingClient, name), []

    def call(self: TrackingClient, *args: Any) -> Any:
        threads.append(threading.current_thread().name)
        if error := fault():
            raise error
        return real(self, *args)

    monkeypatch.setattr(TrackingClient, name, call)
    return threads


def test_everything_that_was_recorded_is_in_mlflow(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path / "state") as recorder:
        files = tmp_path / "state" / "key" / "files"
        (files / "plots").mkdir(parents=True)
        (files / "file.txt").write_text("text")
        (files / "plots" / "inner.txt").write_text("inner")
        recorder.params({"lr": 0.1, "epochs": 3})
        recorder.dataset(DatasetInput("set", "d" * 64, "shapes", {"train_images": 5}))
        for step in range(1, 2501):
            recorder.metrics({"train/loss": 1 / step}, step)
        recorder.tags({"other": "word"})
        recorder.artifact(files, "")
        assert finish(recorder)

    server = client(mlflow_uri)
    run = server.get_run(recorder.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a run"
    assert run.data.tags["mlflow.user"]
    experiment = server.get_experiment_by_name("tests")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert run.data.params == {"lr": "0.1", "epochs": "3"}
    assert (run.data.tags["cnn_jobs.state"], run.data.tags["other"]) == ("finished", "word")
    assert rows(mlflow_uri, recorder.run_id) == [(step, 1 / step) for step in range(1, 2501)]
    assert {item.path for item in server.list_artifacts(recorder.run_id)} == {"file.txt", "plots"}
    assert [item.path for item in server.list_artifacts(recorder.run_id, "plots")] == ["plots/inner.txt"]
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("set", "d" * 36)
    assert len(run.inputs.dataset_inputs) == 1
    assert not list((tmp_path / "state" / "key" / "outbox").iterdir())


def test_a_file_is_sent_as_it_was_when_it_was_recorded(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path / "state") as recorder:
        path = tmp_path / "state" / "key" / "a.txt"
        path.write_text("first")
        recorder.artifact(path, "a.txt")
        path.unlink()
        path.write_text("second, unrecorded")
        assert finish(recorder)
    fetched = client(mlflow_uri).download_artifacts(recorder.run_id, "a.txt", str(tmp_path))
    assert Path(fetched).read_text() == "first"


def test_a_child_names_its_parent_even_if_that_came_later(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path, "child", parent_key="parent") as child:
        with recording(mlflow_uri, tmp_path, "parent") as parent:
            assert finish(parent)
        assert finish(child)
    with recording(mlflow_uri, tmp_path, "second", parent_key="parent") as second:
        pass
    for each in (child, second):
        assert client(mlflow_uri).get_run(each.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def test_a_deleted_experiment_comes_back(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path, "first") as first:
        assert finish(first)
    experiment = client(mlflow_uri).get_experiment_by_name("tests")
    client(mlflow_uri).delete_experiment(experiment.experiment_id)
    with recording(mlflow_uri, tmp_path, "second") as second:
        assert finish(second)
    assert client(mlflow_uri).get_run(second.run_id).info.experiment_id == experiment.experiment_id


def test_a_server_that_refuses_is_told_at_the_start(tmp_path: Path) -> None:
    with (
        answering(403) as uri,
        pytest.raises(TrackingError, match="answered 403") as caught,
        recording(uri, tmp_path),
    ):
        pass
    assert caught.value.exit_code == 1


def test_a_server_that_is_not_there_stops_nothing(tmp_path: Path) -> None:
    with recording(unused_address(), tmp_path) as recorder:
        assert "does not answer" in recorder.outage
        recorder.metrics({"train/loss": 1.0}, 1)
        assert recorder.failure is None
        assert not finish(recorder, 0.3)
    assert recorder.url == ""


def test_an_outage_is_waited_out_and_nothing_is_lost(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults, out = [OutageError("away")] * 3, threading.Event()

    def fault() -> Exception | None:
        out.set()
        return faults.pop() if faults else None

    failing(monkeypatch, "log_metrics", fault)
    with recording(mlflow_uri, tmp_path) as recorder:
        for step in (1, 2, 3):
            recorder.metrics({"train/loss": float(step)}, step)
        assert out.wait(10)
        recorder.metrics({"train/loss": 4.0}, 4)
        assert finish(recorder)
    assert rows(mlflow_uri, recorder.run_id) == [(step, float(step)) for step in (1, 2, 3, 4)]
    assert not faults


def test_files_that_do_not_get_through_hold_up_no_metric(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "upload", lambda: OutageError("the store is away"))
    with recording(mlflow_uri, tmp_path) as recorder:
        path = tmp_path / "key" / "a.txt"
        path.write_text("text")
        recorder.artifact(path, "a.txt")
        recorder.metrics({"train/loss": 1.0}, 1)
        assert not finish(recorder, 1.0)
    assert rows(mlflow_uri, recorder.run_id) == [(1, 1.0)]
    assert client(mlflow_uri).get_run(recorder.run_id).info.status == "RUNNING"


def test_steps_that_are_quicker_than_a_call_hold_up_no_checkpoint(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, sent = itertools.count(2), threading.Event()
    with recording(mlflow_uri, tmp_path) as recorder:

        def train_on() -> None:
            if not sent.is_set():
                recorder.metrics({"train/loss": 1.0}, next(steps))

        failing(monkeypatch, "log_metrics", train_on)
        failing(monkeypatch, "upload", sent.set)
        path = tmp_path / "key" / "last.pt"
        path.write_text("weights")
        recorder.artifact(path, "checkpoints/last.pt", passing=True)
        recorder.metrics({"train/loss": 1.0}, 1)
        assert sent.wait(10)
        assert finish(recorder)
    assert [step for step, _ in rows(mlflow_uri, recorder.run_id)] == list(range(1, next(steps)))


def test_a_refused_record_is_kept_and_the_run_is_failed(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path) as recorder:
        recorder.metrics({"train/loss": 1.0}, 1)
        recorder.metrics({"bad#name": 2.0, "train/loss": 2.0}, 2)
        recorder.metrics({"train/loss": 3.0}, 3)
        with pytest.raises(RejectedRecordsError, match="MLflow refused 1 records") as caught:
            finish(recorder)
    assert caught.value.exit_code == 1
    (line,) = (tmp_path / "key" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["content"]["key"] == "bad#name"
    run = client(mlflow_uri).get_run(recorder.run_id)
    assert (run.info.status, run.data.tags["cnn_jobs.state"]) == ("FAILED", "failed")
    assert "refused 1 records" in run.data.tags["cnn_jobs.reason"]
    # All the others were sent, those of the same call too.
    assert rows(mlflow_uri, recorder.run_id) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_recording_opens_no_socket_in_the_callers_thread(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = socket.socket.__init__

    def init(self: socket.socket, *args: Any, **settings: Any) -> None:
        opened.append(threading.current_thread().name)
        real(self, *args, **settings)

    uri = unused_address()
    monkeypatch.setattr(socket.socket, "__init__", init)
    threads = failing(monkeypatch, "log_metrics", lambda: None)
    with recording(uri, tmp_path, "away") as recorder:
        recorder.metrics({"train/loss": 1.0}, 1)
        assert not finish(recorder, 0.2)
    with recording(mlflow_uri, tmp_path) as recorder:
        recorder.metrics({"train/loss": 1.0}, 1)
        recorder.tags({"a": "b"})
        assert finish(recorder)
    assert set(threads) == {"mlflow-uploader"}
    assert set(opened) == {"mlflow-uploader"}


def test_a_bug_in_the_shipper_is_told_and_the_run_still_ends_truly(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[Exception] = [ZeroDivisionError("a bug")]
    failing(monkeypatch, "log_metrics", lambda: faults.pop() if faults else None)
    with recording(mlflow_uri, tmp_path) as recorder:
        recorder.metrics({"train/loss": 1.0}, 1)
        while recorder.failure is None:
            pass
        failure = recorder.failure
        assert isinstance(failure, ThreadError)
        with pytest.raises(ThreadError, match="ZeroDivisionError: a bug"):
            recorder.finish(run_status.status_after(failure), 30)  # type: ignore[arg-type]
    run = client(mlflow_uri).get_run(recorder.run_id)
    assert (run.info.status, run.data.tags["cnn_jobs.state"]) == ("FAILED", "failed")
    assert "ZeroDivisionError" in run.data.tags["cnn_jobs.reason"]
    assert rows(mlflow_uri, recorder.run_id) == [(1, 1.0)]


def test_a_disk_that_fills_up_does_not_keep_the_ending_from_mlflow(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cnn_jobs.tracking.journal import Journal

    with recording(mlflow_uri, tmp_path) as recorder:
        recorder.metrics({"train/loss": 1.0}, 1)

        def full(*args: object) -> None:
            raise DiskFullError("no space left on the device")

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "append", full)
            with pytest.raises(DiskFullError) as caught:
                recorder.metrics({"train/loss": 2.0}, 2)
            ending = run_status.status_after(caught.value)
            assert ending
            assert recorder.finish(ending, 30)
    run = client(mlflow_uri).get_run(recorder.run_id)
    assert (run.info.status, run.data.tags["cnn_jobs.reason"]) == ("FAILED", "no space left on the device")


def test_an_attempt_that_was_taken_over_stops_without_a_word(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploader_module.ownership, "HEARTBEAT_INTERVAL_S", 0.0)
    with recording(mlflow_uri, tmp_path) as recorder:
        # The number first: the shipper may look between the two.
        client(mlflow_uri).set_tag(recorder.run_id, "cnn_jobs.attempt", "2")
        client(mlflow_uri).set_tag(recorder.run_id, "cnn_jobs.attempt_id", "another")
        recorder.metrics({"train/loss": 1.0}, 1)
        while recorder.failure is None:
            pass
        with pytest.raises(AnotherAttemptError, match="attempt 2 has taken over"):
            finish(recorder)
        recorder.stop()
    run = client(mlflow_uri).get_run(recorder.run_id)
    assert run.info.status == "RUNNING"
    assert rows(mlflow_uri, recorder.run_id) in ([], [(1, 1.0)])


def test_a_run_that_was_taken_for_lost_shows_that_it_lives(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording(mlflow_uri, tmp_path) as recorder:
        client(mlflow_uri).set_terminated(recorder.run_id, "FAILED")
        client(mlflow_uri).set_tag(recorder.run_id, "cnn_jobs.state", "lost")
        monkeypatch.setattr(uploader_module.ownership, "HEARTBEAT_INTERVAL_S", 0.0)
        while client(mlflow_uri).get_run(recorder.run_id).info.status != "RUNNING":
            pass
        assert finish(recorder)
    run = client(mlflow_uri).get_run(recorder.run_id)
    assert (run.info.status, run.data.tags["cnn_jobs.state"]) == ("FINISHED", "finished")
    assert int(run.data.tags["cnn_jobs.heartbeat"]) > 0


def test_a_run_deleted_by_its_user_is_made_again_with_all_its_rows(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording(mlflow_uri, tmp_path) as recorder:
        recorder.metrics({"train/loss": 1.0}, 1)
        while not (first := recorder.run_id) or not rows(mlflow_uri, first):
            pass
        client(mlflow_uri).delete_run(first)
        recorder.metrics({"train/loss": 2.0}, 2)
        assert finish(recorder)
    assert recorder.run_id != first
    assert rows(mlflow_uri, recorder.run_id) == [(1, 1.0), (2, 2.0)]


def test_a_refusal_of_the_server_itself_is_no_rejected_record(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording(mlflow_uri, tmp_path) as recorder:
        failing(monkeypatch, "find", lambda: RefusalError("403"))
        failing(monkeypatch, "log_metrics", lambda: RefusalError("403"))
        recorder.metrics({"train/loss": 1.0}, 1)
        while recorder.failure is None:
            pass
        with pytest.raises(RefusalError, match="403"):
            finish(recorder)
    assert not (tmp_path / "key" / "rejected.jsonl").exists()


def test_a_run_with_refused_records_is_not_ended_before_all_else_has_arrived(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        with recording(mlflow_uri, tmp_path) as first:
            failing(patch, "log_metrics", lambda: RefusalError("not this one"))
            failing(patch, "upload", lambda: OutageError("away"))
            (tmp_path / "key" / "a.txt").write_text("text")
            first.metrics({"train/loss": 1.0}, 1)
            first.artifact(tmp_path / "key" / "a.txt", "a.txt")
            assert not finish(first, 0.5)
        # It gives up at its next round; until then it must not reach an MLflow that takes what this test refuses.
        first._thread.join(60)
        assert not first._thread.is_alive()
    assert client(mlflow_uri).get_run(first.run_id).info.status == "RUNNING"
    with recording(mlflow_uri, tmp_path) as second, pytest.raises(RejectedRecordsError):
        finish(second)
    assert client(mlflow_uri).get_run(first.run_id).info.status == "FAILED"
    assert [each.path for each in client(mlflow_uri).list_artifacts(first.run_id)] == ["a.txt"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.1])
def test_a_row_that_another_journal_brought_is_not_doubled(mlflow_uri: str, tmp_path: Path, value: float) -> None:
    for machine in ("first", "second", "third"):
        with recording(mlflow_uri, tmp_path / machine) as recorder:
            recorder.metrics({"train/loss": value}, 1)
            recorder.metrics({"train/loss": 0.5}, 2)
            assert recorder.finish(STOPPED, 30)
    (first, second) = rows(mlflow_uri, recorder.run_id)
    assert (first[0], second) == (1, (2, 0.5))


def test_a_bad_line_keeps_every_answer(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four questions three are lost: a join that asks for thirty histories in one go would never end."""
    values = {f"val/metric_{number}": float(number) for number in range(30)}
    with recording(mlflow_uri, tmp_path / "first") as recorder:
        recorder.metrics(values, 1)
        assert recorder.finish(STOPPED, 30)
    calls = itertools.count()
    threads = failing(monkeypatch, "history", lambda: OutageError("lost") if next(calls) % 4 else None)
    with recording(mlflow_uri, tmp_path / "second") as recorder:
        recorder.metrics(values, 1)
        assert finish(recorder)
    assert len(threads) == 4 * 30 - 3
    assert all(len(rows(mlflow_uri, recorder.run_id, key)) == 1 for key in values)


FAILED = RunStatus("FAILED", "failed", "the reason", 0)


def test_a_failure_is_told_though_the_files_cannot_be_sent(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody comes after a run that can never work: its status must not wait for the file store."""
    failing(monkeypatch, "upload", lambda: OutageError("away"))
    with recording(mlflow_uri, tmp_path) as recorder:
        (tmp_path / "key" / "a.txt").write_text("text")
        recorder.artifact(tmp_path / "key" / "a.txt", "a.txt")
        assert not recorder.finish(FAILED, 1.0)
    run = client(mlflow_uri).get_run(recorder.run_id)
    assert (run.info.status, run.data.tags["cnn_jobs.reason"]) == ("FAILED", "the reason")


def test_a_failure_is_told_though_the_shipper_has_a_bug_that_stays(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "log_metrics", lambda: ZeroDivisionError("a bug"))
    with recording(mlflow_uri, tmp_path) as recorder:
        recorder.metrics({"train/loss": 1.0}, 1)
        with pytest.raises(ThreadError):
            recorder.finish(FAILED, 10.0)
    run = client(mlflow_uri).get_run(recorder.run_id)
    assert (run.info.status, run.data.tags["cnn_jobs.reason"]) == ("FAILED", "the reason")


def test_a_cursor_that_cannot_be_kept_ends_nothing(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: CursorFile, uri: str, cursor: Any) -> None:
        raise DiskFullError("no room")

    monkeypatch.setattr(CursorFile, "save", full)
    with recording(mlflow_uri, tmp_path) as recorder:
        recorder.metrics({"train/loss": 1.0}, 1)
        assert finish(recorder)
    assert rows(mlflow_uri, recorder.run_id) == [(1, 1.0)]


def test_repeating_what_is_there_is_no_progress(mlflow_uri: str, tmp_path: Path) -> None:
    """Else an attempt that loses its disk each time would always have some, and exit 75 for ever."""

    def attempt(folder: Path) -> JournalRecorder:
        with recording(mlflow_uri, folder) as recorder:
            (folder / "key" / "lineage.json").write_text("{}")
            recorder.params({"lr": 0.1})
            recorder.artifact(folder / "key" / "lineage.json", "lineage.json")
            recorder.metrics({"train/loss": 1.0}, 1)
            assert recorder.finish(STOPPED, 30)
        return recorder

    assert attempt(tmp_path / "first").progress == 2  # the param and the row
    assert attempt(tmp_path / "second").progress == 0


def test_files_that_an_earlier_attempt_left_are_progress(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(unused_address(), tmp_path) as first:
        (tmp_path / "key" / "a.txt").write_text("text")
        first.artifact(tmp_path / "key" / "a.txt", "a.txt")
        assert not first.finish(STOPPED, 0.1)
    with recording(mlflow_uri, tmp_path) as second:
        assert second.finish(STOPPED, 30)
    assert second.progress == 1


def test_refusals_count_once_and_for_the_server_that_refused(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_template_db: Path
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, "log_metrics", lambda: RefusalError("not this one"))
        for _ in range(2):
            with recording(mlflow_uri, tmp_path) as recorder:
                recorder.metrics({"train/loss": 1.0}, 1)
                with pytest.raises(RejectedRecordsError, match="MLflow refused 1 records"):
                    finish(recorder)
            (tmp_path / "key" / "shipped.json").unlink()  # a kill before the cursor was saved
    shutil.copy(mlflow_template_db, tmp_path / "other.db")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    done = replay(tmp_path / "key", other, 30)
    assert done.rejected == ""
    assert client(other).get_run(done.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("place", range(0, 200, 3))
def test_a_flipped_bit_in_the_cursor_passes_nothing_as_sent(tmp_path: Path, place: int) -> None:
    file = CursorFile(tmp_path)
    file.save("http://server", Cursor("run", 120, 7))
    content = bytearray((tmp_path / "shipped.json").read_bytes())
    before = bytes(content)
    content[place % len(content)] ^= 4
    (tmp_path / "shipped.json").write_bytes(bytes(content))
    cursor = file.load("http://server")
    assert cursor in (Cursor("run", 120, 7), Cursor())
    assert file.highest() in (120, 0)
    (tmp_path / "shipped.json").write_bytes(before)
    assert file.load("http://server") == Cursor("run", 120, 7)
