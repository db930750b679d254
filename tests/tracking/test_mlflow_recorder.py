"""One run in a real MLflow database."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from cnn_jobs.errors import TrackingError
from cnn_jobs.tracking import mlflow_client, mlflow_recorder
from cnn_jobs.tracking.mlflow_recorder import MlflowRecorder
from cnn_jobs.tracking.records import DatasetInput, RunRequest
from tests.tracking.test_connection import answering, unused_address


def recorder_for(uri: str, **changes: Any) -> MlflowRecorder:
    request = {"experiment": "tests", "name": "a run", "tags": {"cnn_jobs.state": "running"}, **changes}
    return MlflowRecorder(uri, RunRequest(**request))


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def test_everything_that_was_recorded_is_in_mlflow(mlflow_uri: str, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner.txt").write_text("inner")
    recorder = recorder_for(mlflow_uri)
    recorder.start()
    recorder.params({"lr": 0.1, "epochs": 3})
    recorder.dataset(DatasetInput("set", "d" * 64, "shapes", {"train_images": 5}))
    for step in range(1, 2501):
        recorder.metrics({"train/loss": 1 / step}, step)
    recorder.tags({"cnn_jobs.state": "finished"})
    recorder.artifact(tmp_path / "file.txt")
    recorder.artifact(tmp_path / "folder", "plots")
    recorder.finish("FINISHED", 30)

    server = client(mlflow_uri)
    run = server.get_run(recorder.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a run"
    assert run.data.tags["mlflow.user"]
    experiment = server.get_experiment_by_name("tests")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert run.data.params == {"lr": "0.1", "epochs": "3"}
    assert run.data.tags["cnn_jobs.state"] == "finished"
    history = server.get_metric_history(recorder.run_id, "train/loss")
    assert {(point.step, point.value) for point in history} == {(step, 1 / step) for step in range(1, 2501)}
    assert len(history) == 2500
    assert {item.path for item in server.list_artifacts(recorder.run_id)} == {"file.txt", "plots"}
    assert [item.path for item in server.list_artifacts(recorder.run_id, "plots")] == ["plots/inner.txt"]
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("set", "d" * 36)


def test_a_child_names_its_parent(mlflow_uri: str) -> None:
    parent = recorder_for(mlflow_uri)
    parent.start()
    child = recorder_for(mlflow_uri, parent_run_id=parent.run_id)
    child.start()
    child.finish("FINISHED", 30)
    parent.finish("FINISHED", 30)
    assert client(mlflow_uri).get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def test_a_deleted_experiment_comes_back(mlflow_uri: str) -> None:
    first = recorder_for(mlflow_uri)
    first.start()
    first.finish("FINISHED", 30)
    client(mlflow_uri).delete_experiment(first.experiment_id)
    second = recorder_for(mlflow_uri)
    second.start()
    second.finish("FINISHED", 30)
    assert second.experiment_id == first.experiment_id


def test_a_server_that_refuses_is_told_at_the_start() -> None:
    with answering(403) as uri, pytest.raises(TrackingError, match="answered 403") as caught:
        recorder_for(uri).start()
    assert caught.value.exit_code == 1


def test_a_server_that_is_not_there_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_recorder, "CONNECT_DEADLINE_S", 0.5)
    with pytest.raises(TrackingError, match="does not answer"):
        recorder_for(unused_address()).start()


def test_an_outage_is_waited_out_and_nothing_is_lost(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_recorder, "SHIP_INTERVAL_S", 0.05)
    real, failures, out = mlflow_client.send, [], threading.Event()

    def send(*args: Any) -> None:
        if len(failures) < 3:
            failures.append(1)
            out.set()
            raise ConnectionError("the network is down")
        real(*args)

    recorder = recorder_for(mlflow_uri)
    recorder.start()
    monkeypatch.setattr(mlflow_client, "send", send)
    for step in (1, 2, 3):
        recorder.metrics({"train/loss": float(step)}, step)
    assert out.wait(10)
    recorder.metrics({"train/loss": 4.0}, 4)
    recorder.finish("FINISHED", 30)
    history = client(mlflow_uri).get_metric_history(recorder.run_id, "train/loss")
    assert sorted(point.value for point in history) == [1, 2, 3, 4]
    assert len(failures) == 3


def test_a_refusal_for_good_is_never_called_finished(mlflow_uri: str, tmp_path: Path) -> None:
    recorder = recorder_for(mlflow_uri)
    recorder.start()
    recorder.metrics({"train/loss": 1.0}, 1)
    recorder.artifact(tmp_path / "not there")
    recorder.metrics({"train/loss": 2.0}, 2)
    with pytest.raises(TrackingError, match="not there"):
        recorder.finish("FINISHED", 30)
    assert recorder.failure
    server = client(mlflow_uri)
    assert server.get_run(recorder.run_id).info.status == "FAILED"
    # What could be sent was sent, also after the refusal.
    assert len(server.get_metric_history(recorder.run_id, "train/loss")) == 2


def test_an_outage_past_the_deadline_ends_the_wait(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = recorder_for(mlflow_uri)
    recorder.start()

    def send(*args: Any) -> None:
        raise ConnectionError("the network is down")

    monkeypatch.setattr(mlflow_client, "send", send)
    recorder.metrics({"train/loss": 1.0}, 1)
    with pytest.raises(TrackingError, match="does not answer"):
        recorder.finish("FINISHED", 0.2)
    assert client(mlflow_uri).get_run(recorder.run_id).info.status == "FAILED"


def test_recording_opens_no_socket_in_the_callers_thread(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = recorder_for(mlflow_uri)
    recorder.start()
    threads = []
    real = mlflow_client.send
    monkeypatch.setattr(
        mlflow_client, "send", lambda *args: (threads.append(threading.current_thread().name), real(*args))
    )
    recorder.metrics({"train/loss": 1.0}, 1)
    recorder.tags({"a": "b"})
    recorder.finish("FINISHED", 30)
    assert threads
    assert set(threads) == {"mlflow-shipper"}
