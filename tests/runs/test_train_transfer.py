"""Whole runs of task4a: with stored features and without, in one attempt and in several."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import read_prepared
from cnn_jobs.errors import InterruptedRunError, ReproductionError
from cnn_jobs.models.build import PixelModel, build_resnet18, whole_network
from cnn_jobs.models.weights import open_weights
from cnn_jobs.networks.spec import ResNet18
from cnn_jobs.recipe import Recipe
from cnn_jobs.runs.reproduce import reproduce
from cnn_jobs.runs.setup import RunResult
from cnn_jobs.runs.train import train_run as train_run_of_session
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tasks import TASKS
from cnn_jobs.training import feature_cache
from cnn_jobs.training.checkpoint import load_checkpoint
from tests.helpers.runs import RecordingObserver, cheap_outputs, options, session_of, train_run
from tests.helpers.tracking import client, fetch, rows

# MLflow and torch.export warn when a model is saved or loaded.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("one_thread")]

# Images of 64 x 64 in place of 224 x 224 run the same code in seconds.
TASK = replace(TASKS["task4a"], network=ResNet18(side=64))
Train = Callable[..., RunResult]


@pytest.fixture(autouse=True)
def _small_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "task4a", TASK)


@pytest.fixture
def _cheap_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_outputs(monkeypatch)


@pytest.fixture
def recipe(resnet18_file: Path) -> Recipe:
    return replace(TASK.recipe, epochs=2, batch_size=9, weights=str(resnet18_file))


@pytest.fixture
def train(mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, recipe: Recipe) -> Train:
    """Trains one run; ``changes`` are those of the recipe, ``settings`` those of the options."""

    def run(
        observer: RecordingObserver | None = None,
        *,
        folder: str = ".",
        changes: dict[str, Any] | None = None,
        **settings: Any,
    ) -> RunResult:
        own = options(mlflow_uri, tmp_path / folder, **settings)
        return train_run(own, tiny_dataset, TASK, replace(recipe, **(changes or {})), observer=observer)

    return run


def wasted_seconds(uri: str, run_id: str) -> tuple[float, float, float]:
    """Device seconds: wasted, all, and those of the frozen backbone's pass."""
    metrics = client(uri).get_run(run_id).data.metrics
    keys = ("ledger/device_seconds_thrown_away", "ledger/device_seconds", "trunk/seconds")
    return tuple(metrics[key] for key in keys)  # type: ignore[return-value]


@pytest.mark.usefixtures("_cheap_outputs")
def test_run_stores_its_frozen_weights_once(mlflow_uri: str, tmp_path: Path, train: Train, resnet18_file: Path) -> None:
    result = train(changes={"epochs": 1})
    run = client(mlflow_uri).get_run(result.run_id)
    tags = run.data.tags
    weights = open_weights(str(resnet18_file))
    assert weights
    assert run.info.status == "FINISHED"
    assert run.data.params["weights"] == f"sha256:{weights.digest[:12]}"
    assert tags["cnn_jobs.weights"] == str(resnet18_file)
    assert tags["cnn_jobs.weights_digest"] == weights.digest
    assert tags["cnn_jobs.trunk_cache"].startswith("memory, 0.9 MB for 52 images")
    assert str(resnet18_file) in tags["mlflow.note.content"]
    assert 0 < run.data.metrics["trunk/seconds"] < run.data.metrics["attempt/device_seconds"]
    folder = fetch(mlflow_uri, result.run_id, tmp_path / "artifacts")
    (frozen,) = (folder / "checkpoints").glob("frozen-*.pt")
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.pt", "last.pt", frozen.name}
    backbone = load_checkpoint(frozen)["model"]
    assert all(torch.equal(tensor, weights.tensors[name]) for name, tensor in backbone.items())
    for name in ("best", "last"):
        saved = load_checkpoint(folder / "checkpoints" / f"{name}.pt")
        assert {key.split(".")[0] for key in saved["model"]} == {"layer4", "fc"}
        assert saved["frozen"] == f"checkpoints/{frozen.name}"
        assert {*saved["model"], *backbone} == set(weights.tensors)
    assert "| 18 | Fully-Connected |" in (folder / "network.md").read_text()


@pytest.mark.slow
def test_exported_model_takes_the_pixels_of_the_data_set(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, train: Train, resnet18_file: Path
) -> None:
    import mlflow

    result = train()
    mlflow.set_tracking_uri(mlflow_uri)
    model = mlflow.pytorch.load_model(f"runs:/{result.run_id}/model")
    pixels = tiny_dataset.test_images.float() / 255
    weights = open_weights(str(resnet18_file))
    assert weights
    backbone, head = build_resnet18(weights.tensors, 64, 3, seed=0)
    folder = fetch(mlflow_uri, result.run_id, tmp_path / "artifacts")
    head.load_state_dict(load_checkpoint(folder / "checkpoints/best.pt")["model"])
    expected = PixelModel(whole_network(backbone, head), TASK.transform).eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), expected(pixels), rtol=1e-3, atol=1e-3)
        accuracy = float((model(pixels).argmax(1) == tiny_dataset.test_labels).float().mean())
    assert accuracy == pytest.approx(result.metrics["best/test_accuracy"])


@pytest.mark.slow
@pytest.mark.usefixtures("_cheap_outputs")
@pytest.mark.parametrize("seed", [0, 1])
def test_stored_features_give_the_losses_of_computed_ones(mlflow_uri: str, train: Train, seed: int) -> None:
    results = {mode: train(changes={"seed": seed}, trunk_cache=mode) for mode in ("memory", "disk", "off")}
    for mode, result in results.items():
        assert client(mlflow_uri).get_run(result.run_id).data.tags["cnn_jobs.trunk_cache"].startswith(mode)
    losses = {mode: [loss for _, loss in rows(mlflow_uri, each.run_id)] for mode, each in results.items()}
    assert len(losses["memory"]) == 8
    assert losses["memory"] == losses["disk"]
    assert losses["memory"] == pytest.approx(losses["off"], rel=1e-4)
    for name, value in results["memory"].metrics.items():
        assert results["disk"].metrics[name] == value
        if name.endswith("_accuracy"):
            assert results["off"].metrics[name] == value


@pytest.mark.slow
@pytest.mark.usefixtures("_cheap_outputs")
def test_augmentation_turns_the_cache_off(mlflow_uri: str, train: Train) -> None:
    observer = RecordingObserver()
    result = train(observer, changes={"augmentation": "flip", "epochs": 1}, trunk_cache="memory")
    text = "off (augmentation is flip: no image is the same twice)"
    assert observer.warnings == [f"trunk cache {text}"]
    assert client(mlflow_uri).get_run(result.run_id).data.tags["cnn_jobs.trunk_cache"] == text


@pytest.mark.slow
@pytest.mark.usefixtures("_cheap_outputs")
def test_runs_of_a_series_share_the_features(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, recipe: Recipe
) -> None:
    session = session_of(options(mlflow_uri, tmp_path), tiny_dataset, TASK)
    first, second = (train_run_of_session(session, replace(recipe, seed=seed, epochs=1)) for seed in (0, 1))
    assert "trunk/seconds" in client(mlflow_uri).get_run(first.run_id).data.metrics
    assert "trunk/seconds" not in client(mlflow_uri).get_run(second.run_id).data.metrics
    assert rows(mlflow_uri, first.run_id) != rows(mlflow_uri, second.run_id)


# -- interrupted runs --------------------------------------------------------------------------------------------------


class StopInPass(RecordingObserver):
    """Requests a stop once the backbone has computed so many chunks."""

    def __init__(self, patch: pytest.MonkeyPatch, chunks: int) -> None:
        super().__init__()
        real, done = feature_cache.fill, [0]

        def fill(*args: Any, on_chunk: Any, **settings: Any) -> bool:
            def count(images: int) -> None:
                on_chunk(images)
                done[0] += 1
                if done[0] == chunks:
                    self.stop.record(signal.SIGTERM)

            return real(*args, on_chunk=count, **settings)

        patch.setattr(feature_cache, "fill", fill)


@pytest.mark.slow
@pytest.mark.usefixtures("_cheap_outputs")
@pytest.mark.parametrize("mode", ["memory", "disk"])
def test_run_stopped_in_the_pass_continues_as_the_same_run(
    mlflow_uri: str, tmp_path: Path, train: Train, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(feature_cache.CHUNK, "cpu", 7)
    reference = train(trunk_cache=mode, run_key="reference")
    for path in (tmp_path / "state" / feature_cache.FOLDER).glob("*.features"):
        path.unlink()
    with (
        monkeypatch.context() as patch,
        pytest.raises(InterruptedRunError, match="computed its features") as caught,
    ):
        train(StopInPass(patch, 3), trunk_cache=mode, run_key="stopped")
    assert caught.value.exit_code == 75
    again = train(trunk_cache=mode, run_key="stopped")
    assert rows(mlflow_uri, again.run_id) == rows(mlflow_uri, reference.run_id)
    assert again.metrics == reference.metrics
    wasted, spent, _ = wasted_seconds(mlflow_uri, again.run_id)
    # On disk the first attempt's part of the pass is reused; in memory it is lost with the process.
    assert (wasted < 1e-3) if mode == "disk" else (0 < wasted < spent)


@pytest.mark.slow
@pytest.mark.usefixtures("_cheap_outputs")
def test_run_on_another_machine_repeats_the_pass_and_counts_it_as_wasted(mlflow_uri: str, train: Train) -> None:
    reference = train(run_key="reference")
    with pytest.raises(InterruptedRunError):
        train(RecordingObserver(stop_after=5), run_key="moved")
    again = train(folder="elsewhere", run_key="moved")
    assert rows(mlflow_uri, again.run_id) == rows(mlflow_uri, reference.run_id)
    assert again.metrics == reference.metrics
    wasted, _, of_pass = wasted_seconds(mlflow_uri, again.run_id)
    assert wasted >= 0.5 * of_pass > 0
    assert client(mlflow_uri).get_run(again.run_id).data.metrics["ledger/steps_thrown_away"] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("_cheap_outputs")
@pytest.mark.parametrize("mode", ["memory", "disk"])
def test_stop_at_the_end_of_the_pass_counts_it_once(
    mlflow_uri: str, train: Train, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint, at step 0, includes the costs of the pass."""
    monkeypatch.setitem(feature_cache.CHUNK, "cpu", 26)
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError, match="after step 0"):
        train(StopInPass(patch, 2), trunk_cache=mode, run_key="key")
    again = train(trunk_cache=mode, run_key="key")
    wasted, spent, of_pass = wasted_seconds(mlflow_uri, again.run_id)
    attempts = rows(mlflow_uri, again.run_id, "attempt/device_seconds")
    assert sum(seconds for _, seconds in attempts) == pytest.approx(spent, abs=1e-3)
    # Not twice, and not zero. A busy machine spends some milliseconds between the readings of the two clocks.
    assert (wasted < 1e-3) if mode == "disk" else 0.5 * of_pass < wasted < 1.5 * of_pass


@pytest.mark.slow
@pytest.mark.usefixtures("_cheap_outputs")
def test_same_weights_from_another_place_continue_the_run(
    mlflow_uri: str, tmp_path: Path, train: Train, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the first checkpoint and continued without the first machine's disk."""
    monkeypatch.setitem(feature_cache.CHUNK, "cpu", 7)
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError, match="computed its features"):
        train(StopInPass(patch, 3), run_key="moved")
    copy = tmp_path / "copy.pth"
    copy.write_bytes(Path(recipe.weights).read_bytes())
    again = train(folder="elsewhere", changes={"weights": str(copy)}, run_key="moved")
    run = client(mlflow_uri).get_run(again.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["cnn_jobs.weights"] == str(copy)


@pytest.mark.slow
@pytest.mark.usefixtures("_cheap_outputs")
def test_run_continues_without_its_cache_and_warns(mlflow_uri: str, train: Train) -> None:
    with pytest.raises(InterruptedRunError):
        train(RecordingObserver(stop_after=5), run_key="key")
    observer = RecordingObserver()
    again = train(observer, run_key="key", trunk_cache="off")
    assert any("features computed once -> computed at each step" in line for line in observer.warnings)
    tags = client(mlflow_uri).get_run(again.run_id).data.tags
    assert "features computed once" in tags["cnn_jobs.continued_elsewhere"]


@pytest.mark.slow
@pytest.mark.usefixtures("_cheap_outputs")
@pytest.mark.parametrize("mode", ["memory", "off"])
def test_run_can_be_reproduced(
    mlflow_uri: str, tmp_path: Path, recipe: Recipe, mode: str, small_file: Path, resnet18_file: Path
) -> None:
    dataset, weights = read_prepared(small_file, uri=str(small_file)), tmp_path / "weights.pth"
    weights.write_bytes(resnet18_file.read_bytes())
    recipe = replace(recipe, weights=str(weights), epochs=1)
    result = train_run(options(mlflow_uri, tmp_path, trunk_cache=mode), dataset, TASK, recipe)

    def again() -> list[tuple[str, ...]]:
        return [
            each.differences for each in reproduce(mlflow_uri, result.run_id, "", RecordingObserver(), StopRequest())
        ]

    assert again() == [()] * 4
    content = torch.load(weights)
    content["conv1.weight"] += 1
    torch.save(content, weights)
    with pytest.raises(ReproductionError, match="restore the same file"):
        again()
