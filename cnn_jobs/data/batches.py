"""Batches as whole tensors: split and ordered by seeds, gathered from images in memory, augmented and normalised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch.nn import functional as F

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.errors import RecipeError
from cnn_jobs.networks.spec import InputTransform
from cnn_jobs.recipe import Recipe, derived_seed

LOOK_AHEAD = 8  # batches made at once
CROP_PADDING = 4  # pixels on every side, as in the usual CIFAR-10 recipes


class Examples(ABC):
    """Part of a data set on one device, as inputs of a network. ``images``: (N, 3, H, W) uint8, of the whole data set;
    ``labels``: (N,) int64; ``indices``: (M,) int64, the part."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.images.device

    @abstractmethod
    def batch(
        self, positions: torch.Tensor, augmentation: str = "none", generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs of the network (B, ...) and labels (B,) int64 at ``positions`` (B,) of the part."""

    @abstractmethod
    def subset(self, positions: slice) -> Examples:
        """The examples at ``positions`` of the part."""

    def stream(
        self, batches: Sequence[torch.Tensor], augmentation: str, generator_of: Callable[[int], torch.Generator]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """``batch`` for each of ``batches``; batch number i draws its augmentation from ``generator_of(i)``."""
        for number, positions in enumerate(batches):
            yield self.batch(positions, augmentation, generator_of(number) if augmentation != "none" else None)

    def in_order(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every image of the part once, in the order of the data set; the last batch may be smaller."""
        positions = torch.arange(len(self), device=self.device)
        for chunk in torch.split(positions, batch_size):
            yield self.batch(chunk)


@dataclass(frozen=True)
class ImageSet(Examples):
    """The images themselves. ``scale`` and ``shift`` (1, 3, 1, 1) normalise bytes: byte * scale - shift."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor
    memory_format: torch.memory_format

    def batch(
        self, positions: torch.Tensor, augmentation: str = "none", generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images (B, 3, H, W) float32 and labels (B,) int64."""
        chosen = self.indices[positions]
        images = self.images.index_select(0, chosen)
        if augmentation != "none":
            assert generator is not None
            images = augment(images, augmentation, generator)
        # Before the change of memory format: on three interleaved channels the arithmetic took three times as long.
        floats = images.to(torch.float32).mul_(self.scale).sub_(self.shift)
        return floats.contiguous(memory_format=self.memory_format), self.labels[chosen]

    def stream(
        self, batches: Sequence[torch.Tensor], augmentation: str, generator_of: Callable[[int], torch.Generator]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """As ``Examples.stream``, with several batches made at once: starting the threads for each took longer than the
        work. No bit changes, as each image is computed by itself."""
        if augmentation != "none":
            yield from super().stream(batches, augmentation, generator_of)
            return
        for first in range(0, len(batches), LOOK_AHEAD):
            group = batches[first : first + LOOK_AHEAD]
            sizes = [len(positions) for positions in group]
            images, labels = self.batch(torch.cat(list(group)))
            yield from zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)

    def subset(self, positions: slice) -> ImageSet:
        """The examples at ``positions`` of the part."""
        return replace(self, indices=self.indices[positions])

    def whole(self) -> ImageSet:
        """All images of the data set."""
        return replace(self, indices=torch.arange(len(self.images), device=self.device))


Part = TypeVar("Part", bound=Examples, covariant=True)


@dataclass(frozen=True)
class Parts(Generic[Part]):
    """The three parts of a data set, sharing one copy of the training images."""

    train: Part
    validation: Part
    test: Part

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole batches in the training part."""
        return len(self.train) // batch_size


TrainingData = Parts[Examples]


def place_on_device(
    dataset: Dataset,
    recipe: Recipe,
    transform: InputTransform,
    device: torch.device,
    memory_format: torch.memory_format,
) -> Parts[ImageSet]:
    """Copies a data set to ``device`` and splits it as the recipe specifies."""
    std = torch.tensor(transform.std).reshape(1, 3, 1, 1)
    mean = torch.tensor(transform.mean).reshape(1, 3, 1, 1)
    scale, shift = (1 / (255 * std)).to(device), (mean / std).to(device)

    def part(images: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor) -> ImageSet:
        return ImageSet(images, labels, indices.to(device), scale, shift, memory_format)

    train, validation = split_indices(len(dataset.train_images), recipe.validation_fraction, recipe.split_seed)
    images, labels = dataset.train_images.to(device), dataset.train_labels.to(device)
    test_images, test_labels = dataset.test_images.to(device), dataset.test_labels.to(device)
    return Parts(
        train=part(images, labels, train),
        validation=part(images, labels, validation),
        test=part(test_images, test_labels, torch.arange(len(test_images))),
    )


# -- functions of seeds ----------------------------------------------------------------------------------------------


def generator_for(purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator with a ``derived_seed``: the stream is the same whichever device trains."""
    return torch.Generator().manual_seed(derived_seed(purpose, *numbers))


def split_indices(images: int, validation_fraction: float, split_seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (int64, sorted) of the training and the validation images, drawn without replacement.

    Raises ``RecipeError`` if the fraction leaves one of the two empty.
    """
    held_out = round(images * validation_fraction)
    if not 0 < held_out < images:
        raise RecipeError(
            f"validation_fraction {validation_fraction} of {images} training images leaves {held_out} for "
            f"validation and {images - held_out} for training; both need at least one"
        )
    order = torch.randperm(images, generator=generator_for("split", split_seed))
    return order[held_out:].sort().values, order[:held_out].sort().values


def epoch_order(images: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of one epoch: a permutation (int64) of range(images)."""
    return torch.randperm(images, generator=generator_for("order", seed, epoch))


def augment(images: torch.Tensor, augmentation: str, generator: torch.Generator) -> torch.Tensor:
    """Changes each image (B, 3, H, W) by itself: ``flip`` mirrors it with probability 0.5, ``flip+crop`` also shifts it
    by up to ``CROP_PADDING`` pixels in each direction, with black borders."""
    flipped = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(flipped.to(images.device).reshape(-1, 1, 1, 1), images.flip(3), images)
    return random_crop(images, generator) if augmentation == "flip+crop" else images


def random_crop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shifts each image (B, C, H, W) by its own offset in [-CROP_PADDING, CROP_PADDING], in both directions."""
    count, channels, height, width = images.shape
    device = images.device
    offsets = torch.randint(0, 2 * CROP_PADDING + 1, (2, count, 1), generator=generator).to(device)
    padded = F.pad(images, (CROP_PADDING,) * 4)
    rows = offsets[0] + torch.arange(height, device=device)
    columns = offsets[1] + torch.arange(width, device=device)
    image = torch.arange(count, device=device).reshape(-1, 1, 1, 1)
    channel = torch.arange(channels, device=device).reshape(1, -1, 1, 1)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
