"""A data set in memory: pictures as uint8 tensors, labels, class names, and one digest over all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cnn_jobs.errors import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pictures and labels of a training and a test split, checked when made.

    Raises ``DataError`` (exit 2) where a tensor is not of the form named beside it, or a label has no class.
    """

    name: str
    """Short: ``cifar10``, ``shapes``, else the base name of the file, directory or key without its suffix."""
    uri: str
    """What it was opened by; holds no credentials."""
    classes: tuple[str, ...]
    """Class names; a label is an index into them."""
    train_images: torch.Tensor
    """(N, 3, H, W) uint8, contiguous, on the CPU."""
    train_labels: torch.Tensor
    """(N,) int64, in [0, number of classes)."""
    test_images: torch.Tensor
    """(M, 3, H, W) uint8, contiguous, on the CPU; H and W as in ``train_images``."""
    test_labels: torch.Tensor
    """(M,) int64, in [0, number of classes)."""
    digest: str
    """64 hex digits: see ``content_digest``."""
    synthetic: bool = False
    """True for ``shapes`` and what was prepared from it: whatever shows a result has to say so."""

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise DataError(f"{self.uri}: class names are {list(self.classes)}, but must be different and not none")
        for split in ("train", "test"):
            _check_split(self.uri, split, self.classes, *self.split(split))
        train_size, test_size = tuple(self.train_images.shape[2:]), tuple(self.test_images.shape[2:])
        if train_size != test_size:
            raise DataError(
                f"{self.uri}: train images are {_size(train_size)}, test images {_size(test_size)}; "
                "bring all to one size"
            )

    def split(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of ``train`` or ``test``."""
        if name == "train":
            return self.train_images, self.train_labels
        if name == "test":
            return self.test_images, self.test_labels
        raise ValueError(f"split is {name!r}, but must be 'train' or 'test'")

    @classmethod
    def from_arrays(
        cls,
        *,
        name: str,
        uri: str,
        classes: Sequence[str],
        train: tuple[npt.NDArray[Any], npt.NDArray[Any]],
        test: tuple[npt.NDArray[Any], npt.NDArray[Any]],
        synthetic: bool = False,
    ) -> Dataset:
        """The data set of two pairs, images (N, 3, H, W) uint8 and labels (N,) integer, with its digest.

        Contiguous images are not copied. Raises ``DataError`` as the class does.
        """
        train_images, train_labels, test_images, test_labels = (
            _tensor(uri, array) for pair in (train, test) for array in pair
        )
        return cls(
            name=name,
            uri=uri,
            classes=tuple(classes),
            train_images=train_images,
            train_labels=train_labels,
            test_images=test_images,
            test_labels=test_labels,
            digest=content_digest(classes, train_images, train_labels, test_images, test_labels),
            synthetic=synthetic,
        )


def content_digest(
    classes: Sequence[str],
    train_images: torch.Tensor,
    train_labels: torch.Tensor,
    test_images: torch.Tensor,
    test_labels: torch.Tensor,
) -> str:
    """SHA-256 (64 hex digits) over class names, shapes, images and labels, of train and then of test.

    It does not depend on how they are stored: a zip, its directory and the file prepared from it have the
    same.
    """
    tensors = (train_images, train_labels, test_images, test_labels)
    # The shapes come first, so that no pixel can take the place of a label.
    header = {"classes": list(classes), "shapes": [list(tensor.shape) for tensor in tensors]}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for tensor in tensors:
        array = tensor.contiguous().numpy()
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def _tensor(uri: str, array: npt.NDArray[Any]) -> torch.Tensor:
    """Images or, of one dimension, labels as a tensor; labels of any integer type become int64."""
    if array.dtype != np.uint8 and (array.ndim != 1 or array.dtype.kind not in "iu"):
        what = "labels" if array.ndim == 1 else "images"
        raise DataError(f"{uri}: {what} are {array.dtype}, but must be {'integers' if array.ndim == 1 else 'uint8'}")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64 if array.ndim == 1 else np.uint8))


def _check_split(uri: str, split: str, classes: tuple[str, ...], images: torch.Tensor, labels: torch.Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise DataError(
            f"{uri}: {split} images are {tuple(images.shape)} {images.dtype}, but must be (N, 3, H, W) torch.uint8"
        )
    if images.device.type != "cpu" or not images.is_contiguous():
        raise DataError(f"{uri}: {split} images must be contiguous and on the CPU")
    if tuple(labels.shape) != (len(images),) or labels.dtype != torch.int64:
        raise DataError(
            f"{uri}: {split} labels are {tuple(labels.shape)} {labels.dtype}, "
            f"but must be ({len(images)},) torch.int64, one an image"
        )
    if not images.numel():
        raise DataError(f"{uri}: {split} has no images; at least one is needed")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= len(classes):
        raise DataError(
            f"{uri}: {split} label {lowest if lowest < 0 else highest} is outside the {len(classes)} classes "
            f"(0 to {len(classes) - 1}); correct the labels or name the class"
        )


def _size(height_width: tuple[int, ...]) -> str:
    """Width x height, as pictures are spoken of."""
    height, width = height_width
    return f"{width}x{height}"
