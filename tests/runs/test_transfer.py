"""Whole runs of task4a: with kept features and without, in one go and in several."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import read_prepared, write_prepared
from cnn_jobs.errors import InterruptedRunError, RecipeError, ReproductionError, UserError
from cnn_jobs.models.build import PixelModel, build_resnet18, whole_network
from cnn_jobs.models.weights import open_weights
from cnn_jobs.networks.spec import ResNet18
from cnn_jobs.runs.reproduce import reproduce
from cnn_jobs.runs.setup import RunResult, prepare
from cnn_jobs.runs.train import train_run as train_run_of_session
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tasks import TASKS
from cnn_jobs.training import feature_cache as module
from cnn_jobs.training.checkpoint import load_checkpoint
from cnn_jobs.training.feature_cache import FOLDER, FeatureCache, FeaturePlan
from cnn_jobs.training.loop import DeviceTime
from tests.helpers.runs import RecordingObserver, client, only_run, options, session_of, train_run

# MLflow and torch.export raise warnings of their own when a model is saved or loaded.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("one_thread")]

# Images of 64 x 64 in place of 224 x 224: seconds in place of minutes, and the same code.
TASK = replace(TASKS["task4a"], network=ResNet18(side=64))
RECIPE = replace(TASK.recipe, epochs=2, batch_size=9)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "task4a", TASK)


@pytest.fixture
def recipe(resnet18_file: Path) -> Any:
    return replace(RECIPE, weights=str(resnet18_file))


def train(
    uri: str, tmp_path: Path, dataset: Dataset, recipe: Any, watcher: RecordingObserver | None = None, **more: Any
) -> RunResult:
    watcher = watcher or RecordingObserver()
    stop = watcher.stop or StopRequest()
    return train_run(TASK, recipe, options(uri, tmp_path, **more), dataset, watcher, stop)


def losses(uri: str, run_id: str) -> list[float]:
    points = client(uri).get_metric_history(run_id, "train/loss")
    return [point.value for point in sorted(points, key=lambda point: point.step)]


def fetch(uri: str, run_id: str, tmp_path: Path) -> Path:
    folder = tmp_path / f"artifacts-{run_id}"
    folder.mkdir()
    client(uri).download_artifacts(run_id, "", str(folder))
    return folder


def test_a_run_leaves_what_every_task_does_and_its_frozen_weights_once(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, recipe: Any, resnet18_file: Path
) -> None:
    result = train(mlflow_uri, tmp_path, tiny_dataset, recipe)
    run = only_run(mlflow_uri)
    weights = open_weights(str(resnet18_file))
    assert weights
    assert run.info.status == "FINISHED"
    assert run.data.params["weights"] == f"sha256:{weights.digest[:12]}"
    assert run.data.tags["cnn_jobs.weights"] == str(resnet18_file)
    assert run.data.tags["cnn_jobs.weights_digest"] == weights.digest
    assert run.data.tags["cnn_jobs.trunk_cache"].startswith("memory, 0.9 MB for 52 images")
    assert str(resnet18_file) in run.data.tags["mlflow.note.content"]
    assert 0 < run.data.metrics["trunk/seconds"] < run.data.metrics["attempt/device_seconds"]
    folder = fetch(mlflow_uri, result.run_id, tmp_path)
    (frozen,) = (folder / "checkpoints").glob("frozen-*.pt")
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.pt", "last.pt", frozen.name}
    trunk = load_checkpoint(frozen)["model"]
    assert all(torch.equal(tensor, weights.tensors[name]) for name, tensor in trunk.items())
    for name in ("best", "last"):
        saved = load_checkpoint(folder / "checkpoints" / f"{name}.pt")
        assert {key.split(".")[0] for key in saved["model"]} == {"layer4", "fc"}
        assert saved["frozen"] == f"checkpoints/{frozen.name}"
        # Both parts together are torchvision's network.
        assert {*saved["model"], *trunk} == set(weights.tensors)
    assert "| 18 | Fully-Connected |" in (folder / "network.md").read_text()


@pytest.mark.slow
def test_the_exported_model_takes_the_pixels_of_the_data_set(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, recipe: Any, resnet18_file: Path
) -> None:
    import mlflow

    result = train(mlflow_uri, tmp_path, tiny_dataset, recipe)
    mlflow.set_tracking_uri(mlflow_uri)
    model = mlflow.pytorch.load_model(f"runs:/{result.run_id}/model")
    pixels = tiny_dataset.test_images.float() / 255
    weights = open_weights(str(resnet18_file))
    assert weights
    trunk, top = build_resnet18(weights.tensors, 64, 3, seed=0)
    top.load_state_dict(load_checkpoint(fetch(mlflow_uri, result.run_id, tmp_path) / "checkpoints/best.pt")["model"])
    expected = PixelModel(whole_network(trunk, top), TASK.transform).eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), expected(pixels), rtol=1e-3, atol=1e-3)
        accuracy = float((model(pixels).argmax(1) == tiny_dataset.test_labels).float().mean())
    assert accuracy == pytest.approx(result.metrics["best/test_accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_kept_or_not_the_losses_and_accuracies_are_the_same(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, recipe: Any, seed: int
) -> None:
    recipe = replace(recipe, seed=seed)
    results = {
        mode: train(mlflow_uri, tmp_path, tiny_dataset, recipe, trunk_cache=mode) for mode in ("memory", "disk", "off")
    }
    for mode, result in results.items():
        assert client(mlflow_uri).get_run(result.run_id).data.tags["cnn_jobs.trunk_cache"].startswith(mode)
    rows = {mode: losses(mlflow_uri, result.run_id) for mode, result in results.items()}
    assert len(rows["memory"]) == 8
    assert rows["memory"] == rows["disk"]
    assert rows["memory"] == pytest.approx(rows["off"], rel=1e-4)
    for name, value in results["memory"].metrics.items():
        assert results["disk"].metrics[name] == value
        if name.endswith("_accuracy"):
            assert results["off"].metrics[name] == value


def test_random_augmentation_turns_the_cache_off_and_says_why(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, recipe: Any
) -> None:
    watcher = RecordingObserver()
    recipe = replace(recipe, augmentation="flip", epochs=1)
    train(mlflow_uri, tmp_path, tiny_dataset, recipe, watcher, trunk_cache="memory")
    text = "off (augmentation is flip: no image is the same twice)"
    assert watcher.warnings == [f"trunk cache {text}"]
    assert only_run(mlflow_uri).data.tags["cnn_jobs.trunk_cache"] == text


@pytest.mark.slow
def test_the_runs_of_a_series_share_the_features(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, recipe: Any
) -> None:
    session = session_of(TASK, options(mlflow_uri, tmp_path), tiny_dataset)
    first, second = (train_run_of_session(session, replace(recipe, seed=seed, epochs=1)) for seed in (0, 1))
    assert "trunk/seconds" in client(mlflow_uri).get_run(first.run_id).data.metrics
    assert "trunk/seconds" not in client(mlflow_uri).get_run(second.run_id).data.metrics
    assert losses(mlflow_uri, first.run_id) != losses(mlflow_uri, second.run_id)


class StopInPass(RecordingObserver):
    """Asks for a stop when the trunk has done so many chunks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, chunks: int) -> None:
        super().__init__(StopRequest())
        real, done = module.fill, [0]

        def fill(*args: Any, on_chunk: Any, **settings: Any) -> bool:
            def count(images: int) -> None:
                on_chunk(images)
                done[0] += 1
                if done[0] == chunks:
                    assert self.stop
                    self.stop.record(signal.SIGTERM)

            return real(*args, on_chunk=count, **settings)

        monkeypatch.setattr(module, "fill", fill)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["memory", "disk"])
def test_a_run_that_is_stopped_in_the_pass_goes_on_as_the_same_run(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, recipe: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.CHUNK, "cpu", 7)
    whole = train(mlflow_uri, tmp_path, tiny_dataset, recipe, trunk_cache=mode, run_key="whole")
    for path in (tmp_path / "state" / FOLDER).glob("*.features"):
        path.unlink()
    with (
        monkeypatch.context() as patch,
        pytest.raises(InterruptedRunError, match="computed its features") as caught,
    ):
        train(mlflow_uri, tmp_path, tiny_dataset, recipe, StopInPass(patch, 3), trunk_cache=mode, run_key="stopped")
    assert caught.value.exit_code == 75
    again = train(mlflow_uri, tmp_path, tiny_dataset, recipe, trunk_cache=mode, run_key="stopped")
    assert losses(mlflow_uri, again.run_id) == losses(mlflow_uri, whole.run_id)
    assert again.metrics == whole.metrics
    metrics = client(mlflow_uri).get_run(again.run_id).data.metrics
    thrown = metrics["ledger/device_seconds_thrown_away"]
    # On disk the first attempt's part of the pass was of use; in memory it went with its process.
    assert (thrown < 1e-3) if mode == "disk" else (0 < thrown < metrics["ledger/device_seconds"])


@pytest.mark.slow
def test_a_run_that_goes_on_on_another_machine_repeats_the_pass_and_says_what_that_cost(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(mlflow_uri, tmp_path, tiny_dataset, recipe, run_key="whole")
    stop = StopRequest()
    with pytest.raises(InterruptedRunError):
        train(mlflow_uri, tmp_path, tiny_dataset, recipe, RecordingObserver(stop, after=5), run_key="moved")
    again = train(mlflow_uri, tmp_path / "elsewhere", tiny_dataset, recipe, run_key="moved")
    assert losses(mlflow_uri, again.run_id) == losses(mlflow_uri, whole.run_id)
    assert again.metrics == whole.metrics
    metrics = client(mlflow_uri).get_run(again.run_id).data.metrics
    assert metrics["ledger/device_seconds_thrown_away"] >= 0.5 * metrics["trunk/seconds"] > 0
    assert metrics["ledger/steps_thrown_away"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["memory", "disk"])
def test_a_stop_at_the_end_of_the_pass_counts_it_once(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, recipe: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a checkpoint then, at step 0, and it holds the pass."""
    monkeypatch.setitem(module.CHUNK, "cpu", 26)
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError, match="after step 0"):
        train(mlflow_uri, tmp_path, tiny_dataset, recipe, StopInPass(patch, 2), trunk_cache=mode, run_key="key")
    again = train(mlflow_uri, tmp_path, tiny_dataset, recipe, trunk_cache=mode, run_key="key")
    metrics = client(mlflow_uri).get_run(again.run_id).data.metrics
    thrown = metrics["ledger/device_seconds_thrown_away"]
    points = client(mlflow_uri).get_metric_history(again.run_id, "attempt/device_seconds")
    assert sum(point.value for point in points) == pytest.approx(metrics["ledger/device_seconds"], abs=1e-3)
    # Once: not twice, and not nothing. A busy machine spends some milliseconds between what the two clocks enclose.
    once = metrics["trunk/seconds"]
    assert (thrown < 1e-3) if mode == "disk" else 0.5 * once < thrown < 1.5 * once


@pytest.mark.slow
def test_the_same_weights_from_another_place_go_on_with_the_run(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before there is a checkpoint, and then without the first machine's disk: all is recorded again."""
    monkeypatch.setitem(module.CHUNK, "cpu", 7)
    with (
        monkeypatch.context() as patch,
        pytest.raises(InterruptedRunError, match="computed its features"),
    ):
        train(mlflow_uri, tmp_path, tiny_dataset, recipe, StopInPass(patch, 3), run_key="moved")
    copy = tmp_path / "elsewhere.pth"
    copy.write_bytes(Path(recipe.weights).read_bytes())
    again = train(mlflow_uri, tmp_path / "elsewhere", tiny_dataset, replace(recipe, weights=str(copy)), run_key="moved")
    run = client(mlflow_uri).get_run(again.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["cnn_jobs.weights"] == str(copy)


@pytest.mark.slow
def test_a_run_without_its_cache_goes_on_with_a_word(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, recipe: Any
) -> None:
    stop = StopRequest()
    with pytest.raises(InterruptedRunError):
        train(mlflow_uri, tmp_path, tiny_dataset, recipe, RecordingObserver(stop, after=5), run_key="key")
    watcher = RecordingObserver()
    again = train(mlflow_uri, tmp_path, tiny_dataset, recipe, watcher, run_key="key", trunk_cache="off")
    assert any("features computed once -> computed at each step" in line for line in watcher.warnings)
    tags = client(mlflow_uri).get_run(again.run_id).data.tags
    assert "features computed once" in tags["cnn_jobs.continued_elsewhere"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["memory", "off"])
def test_a_run_can_be_reproduced(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, recipe: Any, mode: str, resnet18_file: Path
) -> None:
    write_prepared(tiny_dataset, tmp_path / "small.npz", compressed=False)
    dataset = read_prepared(tmp_path / "small.npz", uri=str(tmp_path / "small.npz"))
    weights = tmp_path / "weights.pth"
    weights.write_bytes(resnet18_file.read_bytes())
    recipe = replace(recipe, weights=str(weights), epochs=1)
    result = train(mlflow_uri, tmp_path, dataset, recipe, trunk_cache=mode)
    comparisons = reproduce(mlflow_uri, result.run_id, "", RecordingObserver(), StopRequest())
    assert [each.differences for each in comparisons] == [()] * 4
    content = torch.load(weights)
    content["conv1.weight"] += 1
    torch.save(content, weights)
    with pytest.raises(ReproductionError, match="restore the same file"):
        reproduce(mlflow_uri, result.run_id, "", RecordingObserver(), StopRequest())


def test_weights_for_a_network_that_has_none_are_refused_before_mlflow_hears_of_it(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, recipe: Any
) -> None:
    with pytest.raises(RecipeError, match="task2 begins with none"):
        train_run(
            TASKS["task2"], recipe, options(mlflow_uri, tmp_path), tiny_dataset, RecordingObserver(), StopRequest()
        )
    assert client(mlflow_uri).get_experiment_by_name("cnn-jobs") is None


# -- where they are kept -----------------------------------------------------------------------------------------------


def plan(tmp_path: Path, dataset: Dataset, recipe: Any, **more: Any) -> tuple[FeatureCache, FeaturePlan]:
    session = session_of(TASK, options("sqlite:///unused.db", tmp_path, **more), dataset)
    made = prepare(session, recipe)
    planned = made.plan_features(made.new_state())
    assert planned
    return session.features, planned


def never() -> bool:
    return False


@pytest.mark.parametrize(
    ("memory", "disk", "mode", "why"),
    [
        (4.0, 4.0, "memory", ""),
        (1.9, 4.0, "disk", "1.6 MB of memory are free"),
        (1.9, 1.0, "off", "0.9 MB fit neither into 1.6 MB of free memory nor on the disk"),
    ],
)
def test_auto_takes_what_has_room(
    tmp_path: Path,
    tiny_dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    memory: float,
    disk: float,
    mode: str,
    why: str,
) -> None:
    """``memory`` and ``disk``: what is free, in sizes of all features."""
    size = 52 * 256 * 4 * 4 * 4
    monkeypatch.setattr(module, "available_memory", lambda device: int(memory * size))
    usage = type("Usage", (), {"free": int(disk * size)})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    recipe = replace(RECIPE, weights="none")
    _, made = plan(tmp_path, tiny_dataset, recipe)
    assert made.key.total_bytes == size
    assert made.mode == mode
    assert why in made.why
    assert plan(tmp_path, tiny_dataset, recipe, trunk_cache="disk")[1].mode == "disk"


def test_two_at_the_same_time_compute_the_features_once(
    tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads, whose locks exclude each other as those of two processes do."""
    monkeypatch.setitem(module.CHUNK, "cpu", 10)
    first, second = (
        plan(tmp_path, tiny_dataset, replace(RECIPE, weights="none"), trunk_cache="disk") for _ in range(2)
    )
    watchers, spent = [RecordingObserver(), RecordingObserver()], [DeviceTime(), DeviceTime()]
    asked = threading.Event()

    def slowly() -> bool:
        asked.set()
        time.sleep(0.1)
        return False

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first[0].load, first[1], watchers[0], spent[0], slowly)
        assert asked.wait(10)
        other = pool.submit(second[0].load, second[1], watchers[1], spent[1], never)
        parts = [each.result() for each in (one, other)]
    assert "waiting for another process to compute the backbone's features" in watchers[1].phases
    assert spent[0].feature_seconds > 0 == spent[1].feature_seconds
    features = [part.train.batch(torch.arange(5))[0] for part in parts if part]
    assert len(features) == 2
    assert torch.equal(*features)


def test_auto_finds_what_lies_on_the_disk(
    tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is free by then: the file itself takes the room that there was."""
    recipe = replace(RECIPE, weights="none")
    cache, made = plan(tmp_path, tiny_dataset, recipe, trunk_cache="disk")
    assert cache.load(made, RecordingObserver(), DeviceTime(), never)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 0}))
    for memory in (0, 10**12):
        monkeypatch.setattr(module, "available_memory", lambda device, memory=memory: memory)
        (cache, made), spent = plan(tmp_path, tiny_dataset, recipe), DeviceTime()
        assert (made.mode, made.why) == ("disk", "")
        assert cache.load(made, RecordingObserver(), spent, never)
        assert spent.feature_seconds == 0


def test_memory_that_is_not_there_is_refused_in_one_line(
    tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available_memory", lambda device: 500_000)
    with pytest.raises(UserError, match=r"features need 0\.9 MB, 0\.5 MB are free; use --trunk-cache auto") as caught:
        plan(tmp_path, tiny_dataset, replace(RECIPE, weights="none"), trunk_cache="memory")
    assert "\n" not in str(caught.value)


def test_who_waits_for_another_process_can_be_stopped(
    tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, made = plan(tmp_path, tiny_dataset, replace(RECIPE, weights="none"), trunk_cache="disk")
    monkeypatch.setattr(module, "try_lock", lambda path: None)
    spent = DeviceTime()
    assert cache.load(made, RecordingObserver(), spent, lambda: True) is None
    assert spent.feature_seconds == 0
