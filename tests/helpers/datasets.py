"""Small data sets."""

from __future__ import annotations

import numpy as np

from cnn_jobs.data.dataset import Dataset


def striped_dataset(*, train: int = 40, test: int = 12, size: int = 16, seed: int = 0) -> Dataset:
    """Three classes that a small network learns in a few steps: a bright band, left, middle or right, in noise."""
    random = np.random.default_rng(seed)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 3
        images = random.integers(0, 80, (count, 3, size, size), dtype=np.uint8)
        band = size // 3
        for image, label in zip(images, labels, strict=True):
            image[:, :, label * band : (label + 1) * band] += 150
        return images, labels

    return Dataset.from_arrays(
        name="stripes", uri="stripes", classes=("left", "middle", "right"), train=split(train), test=split(test)
    )
