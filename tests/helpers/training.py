"""A training of twelve steps, which takes a few milliseconds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cnn_jobs.data.batches import TrainingData, place_on_device
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.networks.spec import ConvBlock, ConvNet, InputTransform
from cnn_jobs.recipe import Recipe
from cnn_jobs.tracking.recorder import MetricRecorder
from cnn_jobs.training.checkpoint import Checkpointer
from cnn_jobs.training.device import Placement
from cnn_jobs.training.loop import LoopResult, train
from cnn_jobs.training.state import TrainState, new_state

CPU = Placement(torch.device("cpu"), torch.channels_last)

# With every kind of state: BatchNorm's running statistics, dropout's random numbers, Adam's moments.
NETWORK = ConvNet(blocks=(ConvBlock(filters=4, kernel=3, padding=1, batch_norm=True),), hidden=8, dropout=0.3)
# 36 of 40 images train: 4 steps an epoch, 12 in all, validated after 2, 4, 6, 8, 10 and 12 of them.
RECIPE = Recipe(
    epochs=3, batch_size=9, optimizer="adam", lr=1e-2, weight_decay=1e-4, early_stop_count=0, augmentation="flip+crop"
)
STEPS = 12
# What a checkpoint holds of the training itself, without its costs.
STATE = ("model", "optimizer", "generators", "train_losses", "validations", "best", "step", "epoch", "batch")


@dataclass
class Experiment:
    """One network and data set, for several recipes."""

    dataset: Dataset
    network: ConvNet = NETWORK

    def data(self, recipe: Recipe = RECIPE) -> TrainingData:
        return place_on_device(self.dataset, recipe, InputTransform(), CPU.device, CPU.memory_format)

    def state(self, recipe: Recipe = RECIPE) -> TrainState:
        channels, height, width = self.dataset.train_images.shape[1:]
        return new_state(self.network, recipe, (channels, height, width), len(self.dataset.classes), CPU)

    def train(self, state: TrainState, recipe: Recipe = RECIPE, **settings: Any) -> LoopResult:
        return train(state, self.data(recipe), recipe, **settings)


@dataclass
class ListRecorder(MetricRecorder):
    """Keeps every measurement: (name, step, value)."""

    rows: list[tuple[str, int, float]] = field(default_factory=list)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.rows += [(name, step, value) for name, value in values.items()]

    def of(self, name: str) -> list[tuple[int, float]]:
        return [(step, value) for key, step, value in self.rows if key == name]


@dataclass
class Hooks(Checkpointer):
    """A checkpointer made of functions."""

    on_validation: Callable[[TrainState], object] = lambda state: None
    save_due: Callable[[], bool] = lambda: False
    on_save: Callable[[TrainState], object] = lambda state: None

    def due(self) -> bool:
        return self.save_due()

    def save(self, state: TrainState) -> object:
        return self.on_save(state)

    def after_validation(self, state: TrainState) -> None:
        self.on_validation(state)


def snapshot(state: TrainState) -> dict[str, Any]:
    """A copy of the whole state."""
    return copy.deepcopy(state.state_dict())


def differences(one: Any, other: Any, path: str = "state") -> list[str]:
    """Where two nested values differ, in bits or in types."""
    if type(one) is not type(other):
        return [f"{path}: {type(one).__name__} and {type(other).__name__}"]
    if isinstance(one, dict):
        if list(one) != list(other):
            return [f"{path}: keys {list(one)} and {list(other)}"]
        return [line for key in one for line in differences(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{path}: {len(one)} and {len(other)} values"]
        pairs = enumerate(zip(one, other, strict=True))
        return [line for index, pair in pairs for line in differences(*pair, f"{path}[{index}]")]
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and _bytes(one) == _bytes(other)
    else:
        same = repr(one) == repr(other)  # so that nan equals nan, and 0.0 differs from -0.0
    return [] if same else [path]


def _bytes(tensor: torch.Tensor) -> bytes:
    content: bytes = tensor.cpu().contiguous().numpy().tobytes()
    return content
