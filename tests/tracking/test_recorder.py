"""A run is recorded in its journal at once, and in MLflow from a thread."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cnn_jobs.errors import DiskFullError, ThreadError, TrackingError
from cnn_jobs.tracking.connection import UPLOAD_ERRORS, OutageError
from cnn_jobs.tracking.journal import Journal
from cnn_jobs.tracking.recorder import JournalRecorder
from cnn_jobs.tracking.records import DatasetInput
from cnn_jobs.tracking.run_status import RunStatus
from tests.helpers.servers import answering, unused_url
from tests.helpers.tracking import client, fail_calls, finish, finish_after, recording, rows, status_of
from tests.helpers.waiting import until

FAILED = RunStatus("FAILED", "failed", "the reason", 0)


def test_everything_recorded_is_in_mlflow(mlflow_uri: str, tmp_path: Path) -> None:
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
        # An artifact is the file as it was when it was recorded.
        (files / "file.txt").unlink()
        (files / "file.txt").write_text("not recorded")
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
    fetched = server.download_artifacts(recorder.run_id, "file.txt", str(tmp_path))
    assert Path(fetched).read_text() == "text"
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("set", "d" * 36)
    assert len(run.inputs.dataset_inputs) == 1
    assert not list((tmp_path / "state" / "key" / "outbox").iterdir())


def test_recording_opens_no_socket_in_the_callers_thread(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = socket.socket.__init__

    def init(self: socket.socket, *args: Any, **settings: Any) -> None:
        opened.append(threading.current_thread().name)
        real(self, *args, **settings)

    uri = unused_url()
    monkeypatch.setattr(socket.socket, "__init__", init)
    threads = fail_calls(monkeypatch, "log_metrics", lambda: None)
    with recording(uri, tmp_path, "away") as recorder:
        recorder.metrics({"train/loss": 1.0}, 1)
        assert not finish(recorder, 0.2)
    with recording(mlflow_uri, tmp_path) as recorder:
        recorder.metrics({"train/loss": 1.0}, 1)
        recorder.tags({"a": "b"})
        assert finish(recorder)
    assert set(threads) == {"mlflow-uploader"}
    assert set(opened) == {"mlflow-uploader"}


def test_refusing_server_is_reported_at_the_start(tmp_path: Path) -> None:
    with (
        answering(403) as uri,
        pytest.raises(TrackingError, match="answered 403") as caught,
        recording(uri, tmp_path),
    ):
        pass
    assert caught.value.exit_code == 1


def test_missing_server_does_not_stop_the_run(tmp_path: Path) -> None:
    with recording(unused_url(), tmp_path) as recorder:
        assert "does not answer" in recorder.outage
        recorder.metrics({"train/loss": 1.0}, 1)
        assert recorder.failure is None
        assert not finish(recorder, 0.3)
    assert recorder.url == ""


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lasting", [False, True])
def test_bug_in_the_uploader_fails_the_run(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasting: bool
) -> None:
    faults = [ZeroDivisionError("a bug")]
    fail_calls(monkeypatch, "log_metrics", lambda: faults[0] if lasting else faults.pop() if faults else None)
    with recording(mlflow_uri, tmp_path) as recorder:
        recorder.metrics({"train/loss": 1.0}, 1)
        failure = until(lambda: recorder.failure)
        assert isinstance(failure, ThreadError)
        with pytest.raises(ThreadError, match="ZeroDivisionError: a bug"):
            finish_after(recorder, failure)
    *status, reason = status_of(mlflow_uri, recorder.run_id)
    assert status == ["FAILED", "failed"]
    assert "ZeroDivisionError" in reason
    assert rows(mlflow_uri, recorder.run_id) == ([] if lasting else [(1, 1.0)])


def test_status_reaches_mlflow_although_the_disk_is_full(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise DiskFullError("no space left on the device")

    with recording(mlflow_uri, tmp_path) as recorder:
        recorder.metrics({"train/loss": 1.0}, 1)
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "append", full)
            with pytest.raises(DiskFullError) as caught:
                recorder.metrics({"train/loss": 2.0}, 2)
            assert finish_after(recorder, caught.value)
    assert status_of(mlflow_uri, recorder.run_id) == ("FAILED", "failed", "no space left on the device")


def test_failure_reaches_mlflow_although_files_cannot_be_sent(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that can never work has no later attempt to set its status."""
    fail_calls(monkeypatch, "upload", lambda: OutageError("away"))
    with recording(mlflow_uri, tmp_path) as recorder:
        (tmp_path / "key" / "a.txt").write_text("text")
        recorder.artifact(tmp_path / "key" / "a.txt", "a.txt")
        assert not recorder.finish(FAILED, 0.5)
    assert status_of(mlflow_uri, recorder.run_id) == ("FAILED", "failed", "the reason")


# -- backlog and failed calls ------------------------------------------------------------------------------------------


def upload_errors(recorder: JournalRecorder) -> dict[str, int]:
    """Failed calls by kind, without zeros."""
    assert set(recorder.upload_errors) == set(UPLOAD_ERRORS)
    return {kind: count for kind, count in recorder.upload_errors.items() if count}


def test_server_that_has_everything_leaves_no_backlog(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path) as recorder:
        for step in range(50):
            recorder.metrics({"train/loss": 1.0}, step)
        until(lambda: recorder.backlog()[0] == 0)
        assert recorder.backlog()[1] == 0
        assert finish(recorder)
        assert recorder.backlog()[0] == 0
    assert upload_errors(recorder) == {}


def test_backlog_counts_records_and_seconds_without_a_server(tmp_path: Path) -> None:
    with recording(unused_url(), tmp_path) as recorder:
        before = recorder.backlog()[0]
        for step in range(7):
            recorder.metrics({"train/loss": 1.0, "val/loss": 2.0}, step)
        assert recorder.backlog()[0] == before + 7
        first = recorder.backlog()[1]
        time.sleep(0.2)
        assert 0.2 <= recorder.backlog()[1] - first < 5
        until(lambda: upload_errors(recorder))
        assert set(upload_errors(recorder)) == {"no_answer"}
        recorder.stop()


@pytest.mark.parametrize(
    ("status", "body", "content_type", "kind"),
    [
        (503, "no", "text/plain", "server_error"),
        (429, "slow", "text/plain", "throttled"),
        (418, '{"detail": "I am a teapot"}', "application/json", "foreign"),
    ],
)
def test_failed_calls_are_counted_by_kind(status: int, body: str, content_type: str, kind: str, tmp_path: Path) -> None:
    with answering(status, body, content_type) as uri, recording(uri, tmp_path) as recorder:
        until(lambda: upload_errors(recorder))
        assert set(upload_errors(recorder)) == {kind}
        recorder.stop()


def test_refused_record_is_counted_and_not_in_the_backlog(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path) as recorder:
        recorder.metrics({"bad#name": 1.0}, 1)
        until(lambda: upload_errors(recorder) == {"refused": 1})
        until(lambda: recorder.backlog()[0] == 0)
        recorder.stop()
