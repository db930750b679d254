"""Training on a CUDA device: repeatable bits, resumption, rounding. Run by ``pytest -m gpu``."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn

from cnn_jobs.data.batches import Parts, TrainingData, place_on_device
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.errors import PeerLostError
from cnn_jobs.local_server.server import free_port
from cnn_jobs.recipe import Recipe
from cnn_jobs.tasks import TASKS, get_task
from cnn_jobs.training.checkpoint import load_checkpoint, save_checkpoint
from cnn_jobs.training.cuda_graph import WARM_UP_STEPS, GraphedStep
from cnn_jobs.training.device import Placement, configure_arithmetic, select_device
from cnn_jobs.training.feature_cache import fill, with_features
from cnn_jobs.training.feature_store import FeatureKey, MemoryFeatures
from cnn_jobs.training.loop import LoopResult, train
from cnn_jobs.training.process_group import DistributedGroup
from cnn_jobs.training.state import TrainState, new_state
from tests.helpers.datasets import striped_dataset
from tests.helpers.training import CPU, NETWORK, RECIPE, STEPS, differences, snapshot

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

# 32x32 images, as the tasks have them: every pooling has its usual size.
PICTURES = striped_dataset(train=80, test=24, size=32)
SHORT = replace(RECIPE, epochs=1, batch_size=8)
FINAL = "task3e"  # overlapping pooling, BatchNorm, dropout, Adam


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    configure_arithmetic(1)
    yield
    torch.use_deterministic_algorithms(False)


def begin_training(
    task: str, recipe: Recipe, dataset: Dataset = PICTURES, placement: Placement | None = None, network: Any = None
) -> tuple[TrainState, TrainingData]:
    """State before the first step, and data, on the device; a ResNet18 computes its features at each step."""
    placement = placement or select_device("cuda")
    transform = get_task(task).transform
    data = place_on_device(dataset, recipe, transform, placement.device, placement.memory_format)
    channels, height, width = dataset.train_images.shape[1:]
    of = network or get_task(task).network
    state = new_state(of, recipe, (channels, height, width), len(dataset.classes), placement)
    if state.backbone:
        return state, with_features(data, state.backbone, recipe.precision, None)
    return state, data


# -- the same bits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", ["none", "flip+crop"])
@pytest.mark.parametrize("name", TASKS)
def test_every_task_repeats_bit_for_bit(name: str, augmentation: str) -> None:
    recipe = replace(get_task(name).recipe, epochs=1, batch_size=8, augmentation=augmentation)
    results = []
    for _ in range(2):
        state, data = begin_training(name, recipe)
        assert train(state, data, recipe) is LoopResult.COMPLETE
        results.append(snapshot(state))
    assert results[0]["step"] == 9
    assert differences(*results) == []
    assert next(iter(results[0]["model"].values())).device.type == "cuda"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", TASKS)
def test_captured_step_gives_the_bits_of_single_kernels(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(get_task(name).recipe, epochs=1, batch_size=8, precision=precision)
    replays = []
    capture = GraphedStep._capture

    def count(self: GraphedStep, images: torch.Tensor, labels: torch.Tensor) -> None:
        capture(self, images, labels)
        replays.append(self._graph)

    monkeypatch.setattr(GraphedStep, "_capture", count)
    results = []
    for graph in (True, False):
        state, data = begin_training(name, recipe)
        assert train(state, data, recipe, graph=graph) is LoopResult.COMPLETE
        results.append(snapshot(state))
    assert len(replays) == 1
    assert results[0]["step"] == 9 > WARM_UP_STEPS
    assert differences(*results) == []


@pytest.mark.parametrize("task", [FINAL, "small"])
def test_training_stopped_at_any_step_resumes_to_the_same_bits(task: str, tmp_path: Path) -> None:
    def begin() -> tuple[TrainState, TrainingData]:
        if task == "small":
            return begin_training(FINAL, RECIPE, striped_dataset(), network=NETWORK)
        return begin_training(FINAL, RECIPE, striped_dataset(size=32))

    reference, data = begin()
    train(reference, data, RECIPE)
    assert reference.step == STEPS
    for stop in range(STEPS):
        first, data = begin()
        assert train(first, data, RECIPE, should_stop=lambda: first.step == stop) is LoopResult.INTERRUPTED  # noqa: B023
        assert first.step == stop == len(first.train_losses)
        save_checkpoint(tmp_path / "last.pt", first.state_dict())
        torch.manual_seed(99)
        state, data = begin()
        state.load_state_dict(load_checkpoint(tmp_path / "last.pt"))
        assert train(state, data, RECIPE) is LoopResult.COMPLETE
        assert differences(snapshot(reference), snapshot(state)) == [], stop


def test_without_generators_a_training_resumes_differently() -> None:
    """Control experiment: dropout draws from the device's generator."""
    reference, data = begin_training(FINAL, SHORT)
    train(reference, data, SHORT)
    first, data = begin_training(FINAL, SHORT)
    train(first, data, SHORT, should_stop=lambda: first.step == 4)
    saved = snapshot(first)
    torch.cuda.manual_seed(99)
    saved["generators"]["cuda"] = torch.cuda.get_rng_state_all()
    state, data = begin_training(FINAL, SHORT)
    state.load_state_dict(saved)
    train(state, data, SHORT)
    assert state.train_losses[:4] == reference.train_losses[:4]
    assert state.train_losses[4:] != reference.train_losses[4:]


# -- rounding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_single_precision_is_single_precision(name: str) -> None:
    """TensorFloat-32, the default for convolutions, has errors of about 1e-3."""
    recipe = replace(get_task(name).recipe, batch_size=8)
    state, data = begin_training(name, recipe)
    inputs, _ = data.train.batch(torch.arange(8, device="cuda"))
    exact = copy.deepcopy(state.model).cpu().double().eval()
    with torch.no_grad():
        logits = state.model.eval()(inputs).double().cpu()
        wanted = exact(inputs.double().cpu())
    assert 0 < float((logits - wanted).abs().max() / wanted.abs().max()) < 2e-5


def test_first_losses_on_cpu_and_device_are_nearly_equal() -> None:
    """Weights, order of images and augmentation are the same; rounding errors grow with each step."""
    recipe = replace(SHORT, augmentation="flip+crop", optimizer="sgd", lr=0.01)
    losses = []
    for placement in (select_device("cuda"), CPU):
        state, data = begin_training("task3d-batchnorm", recipe, placement=placement)
        train(state, data, recipe, should_stop=lambda: state.step == 3)  # noqa: B023
        losses.append(state.train_losses)
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_training_keeps_its_moments_on_another_device(target: str, tmp_path: Path) -> None:
    recipe = replace(SHORT, augmentation="none")
    places = [select_device("cuda"), CPU]
    first, second = places if target == "cpu" else reversed(places)
    state, data = begin_training("task3d-batchnorm", recipe, placement=first)
    train(state, data, recipe, should_stop=lambda: state.step == 4)
    save_checkpoint(tmp_path / "last.pt", state.state_dict())
    train(state, data, recipe)
    moved, data = begin_training("task3d-batchnorm", recipe, placement=second)
    moved.load_state_dict(load_checkpoint(tmp_path / "last.pt"))
    train(moved, data, recipe)
    assert moved.train_losses[:4] == state.train_losses[:4]
    assert moved.train_losses[4:6] == pytest.approx(state.train_losses[4:6], rel=1e-2)
    ours, theirs = (each.model.conv2.weight.detach().cpu() for each in (moved, state))
    # A step of Adam is about lr at most; moments of other weights would have moved most weights differently.
    assert float((ours - theirs).abs().median()) < recipe.lr / 20


def test_bfloat16_and_fast_arithmetic_train() -> None:
    plain, data = begin_training(FINAL, SHORT)
    train(plain, data, SHORT)
    half = replace(SHORT, precision="bf16")
    state, data = begin_training(FINAL, half)
    train(state, data, half)
    assert state.train_losses != plain.train_losses
    assert state.train_losses[0] == pytest.approx(plain.train_losses[0], rel=0.05)
    configure_arithmetic(1, fast=True)  # cuDNN tries its algorithms in the first steps
    state, data = begin_training(FINAL, SHORT, placement=select_device("cuda", fast=True))
    train(state, data, SHORT)
    assert state.model.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert state.train_losses[0] == pytest.approx(plain.train_losses[0], rel=0.05)


def test_stored_features_give_the_losses_of_computed_ones() -> None:
    recipe = replace(get_task("task4a").recipe, epochs=1, batch_size=8)
    losses = []
    for keep in (False, True):
        state, computed = begin_training("task4a", recipe)
        assert state.backbone
        data: TrainingData = computed
        if keep:
            images = Parts(computed.train.source, computed.validation.source, computed.test.source)  # type: ignore[attr-defined]
            key = FeatureKey({}, 104, state.backbone.feature_shape, torch.float32, 50)
            store = MemoryFeatures(key, torch.device("cuda"))
            assert fill(store, images, state.backbone, "fp32")
            data = with_features(images, state.backbone, "fp32", store)
        train(state, data, recipe)
        losses.append(state.train_losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# -- groups of processes, on one device --------------------------------------------------------------------------------


def new_store() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", free_port(), is_master=True, use_libuv=False)


def test_nccl_group_of_one_trains_as_a_single_process() -> None:
    recipe = replace(SHORT, augmentation="none", optimizer="sgd")
    single, data = begin_training("task3d-batchnorm", recipe)
    train(single, data, recipe)
    state, data = begin_training("task3d-batchnorm", recipe)
    group = DistributedGroup(0, 1, new_store(), torch.device("cuda"), lambda: None)
    try:
        group.broadcast_state(state)
        assert group.backend == dist.get_backend() == "nccl"
        assert isinstance(state.model.norm1, nn.SyncBatchNorm)
        assert train(state, data, recipe, group=group) is LoopResult.COMPLETE
    finally:
        group.close(state)
    assert type(state.model.norm1) is nn.BatchNorm2d
    assert not dist.is_initialized()
    saved, expected = snapshot(state), snapshot(single)
    for each in (saved, expected):
        del each["generators"]  # a group seeds them at each step
    assert differences(saved, expected) == []


def test_wait_for_a_lost_process_on_nccl_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other of two processes never connects: rank 0 waits in the driver until ``check`` raises."""
    calls = []

    def check() -> None:
        calls.append(True)
        if len(calls) > 20:
            raise PeerLostError("lost rank 1")

    monkeypatch.setattr(DistributedGroup, "_guard", lambda self: None)  # it would end this process
    with pytest.raises(PeerLostError, match="lost rank 1"):
        DistributedGroup(0, 2, new_store(), torch.device("cuda"), check)
