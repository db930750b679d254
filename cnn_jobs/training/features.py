"""What a frozen trunk makes of images, as examples for the layers behind it: kept, or computed at each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from cnn_jobs.data.batches import Examples, ImageSet, Parts, TrainingData
from cnn_jobs.models.resnet import Trunk
from cnn_jobs.training.evaluation import precision_context

FEATURE_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Images at a time in the pass over all of them: the same on every attempt, for it decides the last bits.
CHUNK = {"cpu": 50, "cuda": 500}


class FeatureStore(Protocol):
    """Features of the images of a data set, training images first, in chunks of ``chunk`` images.

    ``missing``: numbers of the chunks that are not there yet.
    """

    chunk: int
    missing: list[int]

    def read(self, indices: torch.Tensor) -> torch.Tensor:
        """Features (B, C, H, W) of the images ``indices`` (B,)."""

    def write(self, number: int, features: torch.Tensor) -> None:
        """Keeps a chunk, (B, C, H, W). Raises ``DiskFullError`` or ``StateDirError``."""

    def flush(self) -> None:
        """What was written so far is found again by whoever goes on."""


@dataclass(frozen=True)
class FeatureSet(Examples):
    """The features of a part's images. ``first``: place of the images' first one in the ``store``.

    Without a store, and for augmented images, the trunk computes them anew.
    """

    source: ImageSet
    trunk: Trunk
    precision: str
    store: FeatureStore | None = None
    first: int = 0

    @property
    def images(self) -> torch.Tensor:  # type: ignore[override]
        """(N, 3, H, W) uint8, the images themselves."""
        return self.source.images

    @property
    def labels(self) -> torch.Tensor:  # type: ignore[override]
        """(N,) int64."""
        return self.source.labels

    @property
    def indices(self) -> torch.Tensor:  # type: ignore[override]
        """(M,) int64, the part."""
        return self.source.indices

    def batch(
        self, positions: torch.Tensor, augmentation: str = "none", generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, C, H, W) and labels (B,) int64 of the part's ``positions`` (B,)."""
        if self.store is None or augmentation != "none":
            pixels, labels = self.source.batch(positions, augmentation, generator)
            return features_of(self.trunk, pixels, self.precision), labels
        chosen = self.source.indices[positions]
        return self.store.read(chosen + self.first).to(self.device), self.labels[chosen]

    def some(self, places: slice) -> FeatureSet:
        """The part's features at ``places``."""
        return replace(self, source=self.source.some(places))


def features_of(trunk: Trunk, pixels: torch.Tensor, precision: str) -> torch.Tensor:
    """Features (B, C, H, W) of normalised images, in the precision's own type."""
    # Not inference mode: what the layers behind it learn from must be fit for autograd.
    with torch.no_grad(), precision_context(precision, pixels.device):
        features: torch.Tensor = trunk(pixels)
    return features.to(FEATURE_TYPES[precision])


def with_features(data: Parts[ImageSet], trunk: Trunk, precision: str, store: FeatureStore | None) -> TrainingData:
    """The three parts, as the layers behind ``trunk`` take them."""

    def part(source: ImageSet, first: int = 0) -> FeatureSet:
        return FeatureSet(source, trunk, precision, store, first)

    return Parts(part(data.train), part(data.validation), part(data.test, len(data.train.images)))


def fill(
    store: FeatureStore,
    data: Parts[ImageSet],
    trunk: Trunk,
    precision: str,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_chunk: Callable[[int], object] = lambda images: None,
) -> bool:
    """Computes the chunks that are missing, in order; whether it came to the end before ``should_stop`` said yes.

    ``on_chunk`` hears of each how many images it holds.
    """
    images = len(data.train.images) + len(data.test.images)
    for number in list(store.missing):
        if should_stop():
            store.flush()
            return False
        places = torch.arange(number * store.chunk, min((number + 1) * store.chunk, images), device=data.train.device)
        store.write(number, features_of(trunk, _pixels(data, places), precision))
        on_chunk(len(places))
    store.flush()
    return True


def _pixels(data: Parts[ImageSet], places: torch.Tensor) -> torch.Tensor:
    """Normalised images at ``places`` of training and test images in one row."""
    train, test = data.train.whole(), data.test.whole()
    border = len(train)
    parts = [train.batch(places[places < border])[0], test.batch(places[places >= border] - border)[0]]
    return torch.cat([part for part in parts if len(part)])
