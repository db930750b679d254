"""The setting that all contenders share: task, recipe, random data in the form of CIFAR-10, threads."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import numpy as np
import torch

from cnn_jobs.data.batches import TrainingData, place_on_device
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.recipe import Recipe
from cnn_jobs.tasks import Task, get_task
from cnn_jobs.training.device import Placement, configure_arithmetic, select_device
from cnn_jobs.training.state import TrainState, new_state

IMAGE = (3, 32, 32)
CLASSES = 10


def random_dataset(train: int, test: int) -> Dataset:
    """Noise in the form of CIFAR-10: ``train`` and ``test`` images of 32x32, ten classes, always the same."""
    numbers = np.random.default_rng(0)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        images = numbers.integers(0, 256, (count, *IMAGE), dtype=np.uint8)
        return images, numbers.integers(0, CLASSES, count)

    classes = [f"class{number}" for number in range(CLASSES)]
    return Dataset.from_arrays(name="noise", uri="noise", classes=classes, train=part(train), test=part(test))


@dataclass(frozen=True)
class Setting:
    """One task on one data set, on one device."""

    task: Task
    recipe: Recipe
    data: TrainingData
    placement: Placement
    threads: int

    @classmethod
    def of(cls, task_name: str, dataset: Dataset, threads: int, device: str = "cpu") -> Setting:
        """The task as shipped, but the training never ends by itself: the benchmark stops it."""
        task, placement = get_task(task_name), select_device(device)
        recipe = dataclasses.replace(task.recipe, epochs=1_000_000, early_stop_count=0)
        data = place_on_device(dataset, recipe, task.transform, placement.device, placement.memory_format)
        return cls(task, recipe, data, placement, threads)

    def new_state(self, placement: Placement | None = None, *, fast_convolutions: bool = True) -> TrainState:
        """The shipped network and optimiser before the first step; always the same weights."""
        place = placement or self.placement
        return new_state(self.task.network, self.recipe, IMAGE, CLASSES, place, fast_convolutions=fast_convolutions)

    def configure(self, *, shipped: bool) -> None:
        """Sets the threads for the next stretch, and our deterministic algorithms or torch's default ones."""
        configure_arithmetic(self.threads)
        if not shipped:
            torch.use_deterministic_algorithms(False)

    def constant_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images (B, 3, H, W) and labels (B,) of one batch, in the shipped memory format."""
        return self.data.train.batch(torch.arange(self.recipe.batch_size, device=self.placement.device))

    def now(self) -> float:
        """Seconds on a clock, read when the device has finished all its work."""
        if self.placement.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def usual_optimizer(self, parameters: object) -> torch.optim.Optimizer:
        """The recipe's optimiser with torch's defaults."""
        recipe = self.recipe
        if recipe.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
        return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
