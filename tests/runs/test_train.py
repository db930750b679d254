"""One whole run against a real MLflow database: what it leaves, and how it ends."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.errors import DeviceError, DivergedError, InterruptedRunError, RecipeError, StateDirError, TrackingError
from cnn_jobs.runs import artifacts, checkpointing
from cnn_jobs.runs.setup import RunResult
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tasks import TASKS
from cnn_jobs.training.checkpoint import load_checkpoint
from tests.helpers.runs import RECIPE, TASK, RecordingObserver, client, only_run, options, train_run

# MLflow and torch.export raise warnings of their own when a model is saved or loaded.
pytestmark = pytest.mark.filterwarnings("default")


def run(uri: str, tmp_path: Path, dataset: Dataset, **changes: Any) -> RunResult:
    recipe = replace(RECIPE, **changes)
    return train_run(TASK, recipe, options(uri, tmp_path), dataset, RecordingObserver(), StopRequest())


@pytest.fixture
def finished(mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset) -> tuple[RunResult, Any, Path]:
    """A run that went to its end, as MLflow has it, and its artifacts fetched from there."""
    result = run(mlflow_uri, tmp_path, tiny_dataset)
    server = client(mlflow_uri)
    folder = tmp_path / "artifacts"
    folder.mkdir()
    server.download_artifacts(result.run_id, "", str(folder))
    return result, server.get_run(result.run_id), folder


def test_a_finished_run_has_everything_the_design_names(
    finished: tuple[RunResult, Any, Path], mlflow_uri: str, tiny_dataset: Dataset
) -> None:
    result, found, folder = finished
    assert found.info.status == "FINISHED"
    assert found.data.params == {"task": TASK.name, **{k: str(v) for k, v in RECIPE.as_dict().items()}}
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files >= {
        "checkpoints/best.pt", "checkpoints/last.pt", "plots/loss.png", "plots/accuracy.png", "history.csv",
        "confusion.csv", "mistakes.png", "network.md", "lineage.json", "model/MLmodel",
    }  # fmt: skip
    tags = found.data.tags
    assert tags["cnn_jobs.state"] == "finished"
    assert tags["cnn_jobs.task"] == TASK.name
    assert tags["cnn_jobs.recipe_hash"] == TASK.recipe_hash(RECIPE)
    assert tags["cnn_jobs.group_hash"] == TASK.group_hash(RECIPE, tiny_dataset.digest)
    assert tags["cnn_jobs.data_digest"] == tiny_dataset.digest
    assert tags["cnn_jobs.attempt"] == "1"
    assert tags["cnn_jobs.threads"] == "1"
    assert {"cnn_jobs.run_key", "cnn_jobs.group", "mlflow.source.git.commit", "cnn_jobs.git_dirty"} <= set(tags)
    assert TASK.title in tags["mlflow.note.content"]
    assert f"{result.metrics['last/test_accuracy']:.4f}" in tags["mlflow.note.content"]
    dataset = found.inputs.dataset_inputs[0].dataset
    assert dataset.digest == tiny_dataset.digest[:36]


def test_every_metric_is_there_with_its_step(finished: tuple[RunResult, Any, Path], mlflow_uri: str) -> None:
    result, found, _ = finished
    server = client(mlflow_uri)

    def steps(key: str) -> list[int]:
        return sorted(point.step for point in server.get_metric_history(result.run_id, key))

    per_epoch = result.steps // 2
    assert steps("train/loss") == list(range(1, result.steps + 1))
    validations = [per_epoch // 2, per_epoch, per_epoch + per_epoch // 2, 2 * per_epoch]
    for key in ("val/loss", "val/accuracy", "train/images_per_second"):
        assert steps(key) == validations
    parts = [f"{part}_{kind}" for part in ("train", "val", "test") for kind in ("loss", "accuracy")]
    for key in [*(f"{model}/{part}" for model in ("best", "last") for part in parts), "best/step"]:
        assert found.data.metrics[key] == pytest.approx(result.metrics[key])
        assert steps(key) == [result.steps]
    for key in ("attempt/steps", "attempt/device_seconds", "attempt/wall_seconds"):
        assert steps(key) == [1]
    assert found.data.metrics["attempt/steps"] == result.steps
    assert 0 < found.data.metrics["attempt/device_seconds"] <= found.data.metrics["attempt/wall_seconds"]


def test_the_best_figures_are_of_the_lowest_validation_loss(
    finished: tuple[RunResult, Any, Path], mlflow_uri: str
) -> None:
    result, _, _ = finished
    losses = {point.step: point.value for point in client(mlflow_uri).get_metric_history(result.run_id, "val/loss")}
    best_step = min(losses, key=lambda step: (losses[step], step))
    assert result.metrics["best/step"] == best_step
    assert result.metrics["best/val_loss"] == pytest.approx(losses[best_step], rel=1e-6)
    assert result.metrics["last/val_loss"] == pytest.approx(losses[result.steps], rel=1e-6)


def test_the_exported_model_is_the_best_checkpoint(
    finished: tuple[RunResult, Any, Path], mlflow_uri: str, tiny_dataset: Dataset
) -> None:
    import mlflow

    from cnn_jobs.models.build import PixelModel, build_model

    result, _, folder = finished
    checkpoint = load_checkpoint(folder / "checkpoints" / "best.pt")
    network = build_model(TASK.network, tuple(tiny_dataset.train_images.shape[1:]), len(tiny_dataset.classes), 99)
    network.load_state_dict(checkpoint["model"])
    pixels = tiny_dataset.test_images.float() / 255
    expected = PixelModel(network, TASK.transform).eval()(pixels)
    mlflow.set_tracking_uri(mlflow_uri)
    loaded = mlflow.pytorch.load_model(f"runs:/{result.run_id}/model")
    torch.testing.assert_close(loaded(pixels), expected, rtol=1e-4, atol=1e-5)
    correct = (expected.argmax(1) == tiny_dataset.test_labels).double().mean()
    assert float(correct) == pytest.approx(result.metrics["best/test_accuracy"])


def test_the_files_agree_with_the_metrics(
    finished: tuple[RunResult, Any, Path], mlflow_uri: str, tiny_dataset: Dataset
) -> None:
    result, _, folder = finished
    rows = list(csv.DictReader(io.StringIO((folder / "history.csv").read_text())))
    logged = client(mlflow_uri).get_metric_history(result.run_id, "train/loss")
    assert {int(row["step"]): float(row["train_loss"]) for row in rows} == {p.step: p.value for p in logged}
    confusion = list(csv.reader(io.StringIO((folder / "confusion.csv").read_text())))
    counts = torch.tensor([[int(cell) for cell in row[1:]] for row in confusion[1:]])
    assert confusion[0][1:] == list(tiny_dataset.classes)
    assert int(counts.sum()) == len(tiny_dataset.test_images)
    assert float(counts.diag().sum() / counts.sum()) == pytest.approx(result.metrics["best/test_accuracy"])
    lineage = json.loads((folder / "lineage.json").read_text())
    assert lineage["data"]["digest"] == tiny_dataset.digest
    assert lineage["recipe"] == RECIPE.as_dict()
    last = load_checkpoint(folder / "checkpoints" / "last.pt")
    assert last["step"] == result.steps
    assert set(last) >= {"model", "optimizer", "generators", "recipe_hash", "data_digest"}


def test_the_same_recipe_seed_and_data_give_the_same_bytes(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset
) -> None:
    def digests(seed: int) -> tuple[str, str, Mapping[str, float]]:
        folder = tmp_path / f"{seed}-{len(list(tmp_path.iterdir()))}"
        result = run(mlflow_uri, folder, tiny_dataset, seed=seed)
        (state,) = (folder / "state").iterdir()
        history = (state / "artifacts" / "history.csv").read_bytes()
        weights = load_checkpoint(state / "checkpoints" / "last.pt")
        content = b"".join(tensor.numpy().tobytes() for tensor in weights["model"].values())
        optimizer = b"".join(
            value.numpy().tobytes() for each in weights["optimizer"]["state"].values() for value in each.values()
        )
        assert len(content) > 1_000_000
        return hashlib.sha256(content + optimizer).hexdigest(), hashlib.sha256(history).hexdigest(), result.metrics

    first, again, other = digests(3), digests(3), digests(4)
    assert first == again
    assert other[0] != first[0]
    assert other[1] != first[1]


def test_a_training_that_diverges_is_failed_and_leaves_no_final_figures(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset
) -> None:
    task = TASKS["task2"]
    recipe = replace(task.recipe, lr=1e12, epochs=2, batch_size=8)
    with pytest.raises(DivergedError, match=r"the training loss is (nan|inf) at step \d+") as caught:
        train_run(task, recipe, options(mlflow_uri, tmp_path), tiny_dataset, RecordingObserver(), StopRequest())
    assert caught.value.exit_code == 2
    found = only_run(mlflow_uri)
    assert found.info.status == "FAILED"
    assert found.data.tags["cnn_jobs.state"] == "diverged"
    assert found.data.tags["cnn_jobs.reason"] == str(caught.value)
    assert not [key for key in found.data.metrics if key.startswith(("best/", "last/"))]


def test_a_signal_ends_the_run_as_killed_with_its_state_on_disk(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset
) -> None:
    stop = StopRequest()
    watcher = RecordingObserver(stop, after=5)
    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM after step 5") as caught:
        train_run(TASK, RECIPE, options(mlflow_uri, tmp_path), tiny_dataset, watcher, stop)
    assert caught.value.exit_code == 75
    assert caught.value.run_key == only_run(mlflow_uri).data.tags["cnn_jobs.run_key"]
    assert watcher.ended == ["interrupted"]
    found = only_run(mlflow_uri)
    assert found.info.status == "KILLED"
    assert found.data.tags["cnn_jobs.state"] == "interrupted"
    (state,) = (tmp_path / "state").iterdir()
    assert load_checkpoint(state / "checkpoints" / "last.pt")["step"] == 5


def test_a_signal_while_the_first_line_is_shown_leaves_no_run_running(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(self: RecordingObserver, name: str, steps: int) -> None:
        raise InterruptedRunError("stopped by SIGTERM")  # as the handler does, outside of training

    monkeypatch.setattr(RecordingObserver, "training_started", started)
    with pytest.raises(InterruptedRunError):
        run(mlflow_uri, tmp_path, tiny_dataset)
    assert only_run(mlflow_uri).info.status == "KILLED"


def test_an_unexpected_error_is_failed_with_its_reason(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(artifacts, "write_artifacts", broken)
    with pytest.raises(ZeroDivisionError):
        run(mlflow_uri, tmp_path, tiny_dataset)
    found = only_run(mlflow_uri)
    assert found.info.status == "FAILED"
    assert found.data.tags["cnn_jobs.state"] == "failed"
    assert found.data.tags["cnn_jobs.reason"] == "ZeroDivisionError: a bug"


def test_a_refusing_server_stops_the_training(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cnn_jobs.tracking import recorder
    from cnn_jobs.tracking.client import TrackingClient
    from cnn_jobs.tracking.connection import RefusalError

    def refuse(*args: object) -> None:
        raise RefusalError("MLflow answered 403")

    class Later(RecordingObserver):
        def step_finished(self, step: int, loss: float) -> None:
            monkeypatch.setattr(TrackingClient, "find", refuse)
            monkeypatch.setattr(TrackingClient, "log_metrics", refuse)

    monkeypatch.setattr(recorder, "UPLOAD_INTERVAL_S", 0.01)
    recipe = replace(RECIPE, epochs=1000)
    with pytest.raises(TrackingError, match="answered 403") as caught:
        train_run(TASK, recipe, options(mlflow_uri, tmp_path), tiny_dataset, Later(), StopRequest())
    assert caught.value.exit_code == 1
    (state,) = (tmp_path / "state").iterdir()
    assert 0 < load_checkpoint(state / "checkpoints" / "last.pt")["step"] < 4000


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_leaves_no_run(mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset) -> None:
    wanted = replace(options(mlflow_uri, tmp_path), device="cuda")
    with pytest.raises(DeviceError, match="device is cuda"):
        train_run(TASK, RECIPE, wanted, tiny_dataset, RecordingObserver(), StopRequest())
    assert client(mlflow_uri).get_experiment_by_name("cnn-jobs") is None


def test_a_batch_larger_than_the_data_leaves_no_run(mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset) -> None:
    with pytest.raises(RecipeError, match="batch_size 5000 is larger than the"):
        run(mlflow_uri, tmp_path, tiny_dataset, batch_size=5000)
    assert client(mlflow_uri).get_experiment_by_name("cnn-jobs") is None


def test_a_state_directory_that_cannot_be_made_leaves_no_run(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset
) -> None:
    (tmp_path / "file").write_text("")
    wanted = replace(options(mlflow_uri, tmp_path), state_dir=tmp_path / "file" / "state")
    with pytest.raises(StateDirError, match="cannot be written"):
        train_run(TASK, RECIPE, wanted, tiny_dataset, RecordingObserver(), StopRequest())
    assert client(mlflow_uri).get_experiment_by_name("cnn-jobs") is None


def test_a_full_disk_fails_the_run_with_its_reason(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from cnn_jobs.errors import from_os_error

    def full(path: Path, content: object, **settings: object) -> Path:
        raise from_os_error(OSError(errno.ENOSPC, "No space left on device"), path)

    monkeypatch.setattr(checkpointing, "save_checkpoint", full)
    with pytest.raises(Exception, match="no space left on the device") as caught:
        run(mlflow_uri, tmp_path, tiny_dataset)
    assert caught.value.exit_code == 1  # type: ignore[attr-defined]
    found = only_run(mlflow_uri)
    assert found.info.status == "FAILED"
    assert "no space left" in found.data.tags["cnn_jobs.reason"]
