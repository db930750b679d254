"""One run against a real MLflow database: what it records, and how it ends."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.errors import DiskFullError, DivergedError, InterruptedRunError, TrackingError, from_os_error
from cnn_jobs.runs import artifacts, checkpointing
from cnn_jobs.runs.setup import RunResult
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking import recorder
from cnn_jobs.tracking.client import TrackingClient
from cnn_jobs.tracking.connection import RefusalError
from cnn_jobs.training.checkpoint import load_checkpoint
from tests.helpers.runs import RECIPE, STEPS, TASK, RecordingObserver, cheap_outputs, options, train_run
from tests.helpers.tracking import client, fetch, only_run, rows, status_of
from tests.helpers.training import STATE, differences

# MLflow and torch.export warn when a model is saved or loaded.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("one_thread")]
VALIDATED = [2, 4, 6, 8]


# -- a finished run ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """A finished run: its result, the run in MLflow, and its artifacts downloaded from there."""

    uri: str
    result: RunResult
    run: Any
    artifacts: Path

    def steps(self, key: str) -> list[int]:
        return [step for step, _ in rows(self.uri, self.result.run_id, key)]


@pytest.fixture(scope="module")
def finished(
    mlflow_template_db: Path, tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Dataset
) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("finished")
    shutil.copy(mlflow_template_db, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with contextlib.chdir(folder):
        result = train_run(options(uri, folder), tiny_dataset)
        run = client(uri).get_run(result.run_id)
        yield Finished(uri, result, run, fetch(uri, result.run_id, folder / "artifacts"))


def test_finished_run_has_params_tags_and_artifacts(finished: Finished, tiny_dataset: Dataset) -> None:
    run, tags = finished.run, finished.run.data.tags
    assert run.info.status == "FINISHED"
    assert run.data.params == {"task": TASK.name, **{k: str(v) for k, v in RECIPE.as_dict().items()}}
    files = {str(path.relative_to(finished.artifacts)) for path in finished.artifacts.rglob("*") if path.is_file()}
    assert files >= {
        "checkpoints/best.pt", "checkpoints/last.pt", "plots/loss.png", "plots/accuracy.png", "history.csv",
        "confusion.csv", "mistakes.png", "network.md", "lineage.json", "model/MLmodel",
    }  # fmt: skip
    assert tags["cnn_jobs.state"] == "finished"
    assert tags["cnn_jobs.task"] == TASK.name
    assert tags["cnn_jobs.recipe_hash"] == TASK.recipe_hash(RECIPE)
    assert tags["cnn_jobs.group_hash"] == TASK.group_hash(RECIPE, tiny_dataset.digest)
    assert tags["cnn_jobs.data_digest"] == tiny_dataset.digest
    assert tags["cnn_jobs.attempt"] == "1"
    assert tags["cnn_jobs.threads"] == "1"
    assert {"cnn_jobs.run_key", "cnn_jobs.group", "mlflow.source.git.commit", "cnn_jobs.git_dirty"} <= set(tags)
    assert TASK.title in tags["mlflow.note.content"]
    assert f"{finished.result.metrics['last/test_accuracy']:.4f}" in tags["mlflow.note.content"]
    assert run.inputs.dataset_inputs[0].dataset.digest == tiny_dataset.digest[:36]


def test_finished_run_has_every_metric_at_its_step(finished: Finished) -> None:
    metrics = finished.run.data.metrics
    assert finished.result.steps == STEPS
    assert finished.steps("train/loss") == list(range(1, STEPS + 1))
    for key in ("val/loss", "val/accuracy", "train/images_per_second"):
        assert finished.steps(key) == VALIDATED
    parts = [f"{part}_{kind}" for part in ("train", "val", "test") for kind in ("loss", "accuracy")]
    for key in [*(f"{model}/{part}" for model in ("best", "last") for part in parts), "best/step"]:
        assert metrics[key] == pytest.approx(finished.result.metrics[key])
        assert finished.steps(key) == [STEPS]
    for key in ("attempt/steps", "attempt/device_seconds", "attempt/wall_seconds"):
        assert finished.steps(key) == [1]
    assert metrics["attempt/steps"] == STEPS
    assert 0 < metrics["attempt/device_seconds"] <= metrics["attempt/wall_seconds"]


def test_best_figures_are_those_of_the_lowest_validation_loss(finished: Finished) -> None:
    losses = dict(rows(finished.uri, finished.result.run_id, "val/loss"))
    best_step = min(losses, key=lambda step: (losses[step], step))
    assert finished.result.metrics["best/step"] == best_step
    assert finished.result.metrics["best/val_loss"] == pytest.approx(losses[best_step], rel=1e-6)
    assert finished.result.metrics["last/val_loss"] == pytest.approx(losses[STEPS], rel=1e-6)


def test_exported_model_is_the_best_checkpoint(finished: Finished, tiny_dataset: Dataset) -> None:
    import mlflow

    from cnn_jobs.models.build import PixelModel, build_model

    checkpoint = load_checkpoint(finished.artifacts / "checkpoints" / "best.pt")
    network = build_model(TASK.network, tuple(tiny_dataset.train_images.shape[1:]), len(tiny_dataset.classes), 99)
    network.load_state_dict(checkpoint["model"])
    pixels = tiny_dataset.test_images.float() / 255
    expected = PixelModel(network, TASK.transform).eval()(pixels)
    mlflow.set_tracking_uri(finished.uri)
    loaded = mlflow.pytorch.load_model(f"runs:/{finished.result.run_id}/model")
    torch.testing.assert_close(loaded(pixels), expected, rtol=1e-4, atol=1e-5)
    correct = (expected.argmax(1) == tiny_dataset.test_labels).double().mean()
    assert float(correct) == pytest.approx(finished.result.metrics["best/test_accuracy"])


def test_files_agree_with_the_metrics(finished: Finished, tiny_dataset: Dataset) -> None:
    folder = finished.artifacts
    history = csv.DictReader(io.StringIO((folder / "history.csv").read_text()))
    logged = rows(finished.uri, finished.result.run_id, "train/loss")
    assert [(int(row["step"]), float(row["train_loss"])) for row in history] == logged
    confusion = list(csv.reader(io.StringIO((folder / "confusion.csv").read_text())))
    counts = torch.tensor([[int(cell) for cell in row[1:]] for row in confusion[1:]])
    assert confusion[0][1:] == list(tiny_dataset.classes)
    assert int(counts.sum()) == len(tiny_dataset.test_images)
    assert float(counts.diag().sum() / counts.sum()) == pytest.approx(finished.result.metrics["best/test_accuracy"])
    lineage = json.loads((folder / "lineage.json").read_text())
    assert lineage["data"]["digest"] == tiny_dataset.digest
    assert lineage["recipe"] == RECIPE.as_dict()
    last = load_checkpoint(folder / "checkpoints" / "last.pt")
    assert last["step"] == STEPS
    assert set(last) >= {"model", "optimizer", "generators", "recipe_hash", "data_digest"}


def test_same_recipe_seed_and_data_give_the_same_bits(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cheap_outputs(monkeypatch)

    def train(name: str, seed: int) -> tuple[dict[str, Any], Mapping[str, float]]:
        result = train_run(options(mlflow_uri, tmp_path / name), tiny_dataset, recipe=replace(RECIPE, seed=seed))
        (state,) = (tmp_path / name / "state").iterdir()
        saved = load_checkpoint(state / "checkpoints" / "last.pt")
        return {key: saved[key] for key in STATE}, result.metrics

    first, again, other = train("first", 3), train("again", 3), train("other", 4)
    assert differences(first[0], again[0]) == []
    assert first[1] == again[1]
    assert {"state.model.conv1.weight", "state.train_losses[0]"} <= set(differences(first[0], other[0]))


# -- other ends --------------------------------------------------------------------------------------------------------


def test_diverged_run_is_failed_without_final_figures(mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset) -> None:
    recipe = replace(TASKS["task2"].recipe, lr=1e12, epochs=2, batch_size=8)
    with pytest.raises(DivergedError, match=r"the training loss is (nan|inf) at step \d+") as caught:
        train_run(options(mlflow_uri, tmp_path), tiny_dataset, TASKS["task2"], recipe)
    assert caught.value.exit_code == 2
    run = only_run(mlflow_uri)
    assert status_of(mlflow_uri, run.info.run_id) == ("FAILED", "diverged", str(caught.value))
    assert not [key for key in run.data.metrics if key.startswith(("best/", "last/"))]


def test_signal_ends_the_run_as_killed_with_its_state_on_disk(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset
) -> None:
    observer = RecordingObserver(stop_after=5)
    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM after step 5") as caught:
        train_run(options(mlflow_uri, tmp_path), tiny_dataset, observer=observer)
    run = only_run(mlflow_uri)
    assert caught.value.exit_code == 75
    assert caught.value.run_key == run.data.tags["cnn_jobs.run_key"]
    assert observer.ended == ["interrupted"]
    assert status_of(mlflow_uri, run.info.run_id)[:2] == ("KILLED", "interrupted")
    (state,) = (tmp_path / "state").iterdir()
    assert load_checkpoint(state / "checkpoints" / "last.pt")["step"] == 5


def test_signal_before_the_first_step_ends_the_run_as_killed(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(self: RecordingObserver, name: str, steps: int) -> None:
        raise InterruptedRunError("stopped by SIGTERM")  # as the signal handler does outside of training

    monkeypatch.setattr(RecordingObserver, "training_started", started)
    with pytest.raises(InterruptedRunError):
        train_run(options(mlflow_uri, tmp_path), tiny_dataset)
    assert only_run(mlflow_uri).info.status == "KILLED"


@pytest.mark.parametrize(
    ("owner", "name", "error", "reason"),
    [
        (artifacts, "write_artifacts", ZeroDivisionError("a bug"), "ZeroDivisionError: a bug"),
        (
            checkpointing,
            "save_checkpoint",
            from_os_error(OSError(errno.ENOSPC, ""), "last.pt"),
            "last.pt: no space left on the device; free some or choose another directory",
        ),
    ],
    ids=["bug", "full disk"],
)
def test_error_fails_the_run_with_its_reason(
    owner: Any,
    name: str,
    error: Exception,
    reason: str,
    mlflow_uri: str,
    tmp_path: Path,
    tiny_dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises((ZeroDivisionError, DiskFullError)) as caught:
        train_run(options(mlflow_uri, tmp_path), tiny_dataset)
    assert caught.value is error
    assert status_of(mlflow_uri, only_run(mlflow_uri).info.run_id) == ("FAILED", "failed", reason)


def test_refusing_server_stops_the_training(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise RefusalError("MLflow answered 403")

    class RefusesLater(RecordingObserver):
        def step_finished(self, step: int, loss: float) -> None:
            monkeypatch.setattr(TrackingClient, "find", refuse)
            monkeypatch.setattr(TrackingClient, "log_metrics", refuse)

    monkeypatch.setattr(recorder, "UPLOAD_INTERVAL_S", 0.01)
    recipe = replace(RECIPE, epochs=1000)
    with pytest.raises(TrackingError, match="answered 403") as caught:
        train_run(options(mlflow_uri, tmp_path), tiny_dataset, recipe=recipe, observer=RefusesLater())
    assert caught.value.exit_code == 1
    (state,) = (tmp_path / "state").iterdir()
    assert 0 < load_checkpoint(state / "checkpoints" / "last.pt")["step"] < 4000
