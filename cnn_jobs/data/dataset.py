"""A data set in memory: images as uint8 tensors, labels, class names, and one digest over all of them."""

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

SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels of a training and a test split.

    Images are (N, 3, H, W) uint8, contiguous, on the CPU, of one size; labels are (N,) int64, indices into ``classes``.
    ``synthetic``: generated, as is ``shapes``; everything that shows a result has to state it. Raises ``DataError``
    (exit 2) if a tensor is of another form, or a label has no class.
    """

    name: str  # cifar10, shapes, or the base name of the file, directory or key without its suffix
    uri: str  # by which it was opened, without credentials
    classes: tuple[str, ...]
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    digest: str  # see content_digest
    synthetic: bool = False

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise DataError(f"{self.uri}: class names are {list(self.classes)}, but must be different and not none")
        for split in SPLITS:
            self._check_split(split)
        train_size, test_size = image_size(self.train_images), image_size(self.test_images)
        if train_size != test_size:
            raise DataError(
                f"{self.uri}: train images are {train_size}, test images {test_size}; bring all to one size"
            )

    def _check_split(self, split: str) -> None:
        images, labels = self.split(split)
        what = f"{self.uri}: {split}"
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise DataError(
                f"{what} images are {tuple(images.shape)} {images.dtype}, but must be (N, 3, H, W) torch.uint8"
            )
        if images.device.type != "cpu" or not images.is_contiguous():
            raise DataError(f"{what} images must be contiguous and on the CPU")
        if tuple(labels.shape) != (len(images),) or labels.dtype != torch.int64:
            raise DataError(
                f"{what} labels are {tuple(labels.shape)} {labels.dtype}, "
                f"but must be ({len(images)},) torch.int64, one an image"
            )
        if not images.numel():
            raise DataError(f"{what} has no images; at least one is needed")
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0 or highest >= len(self.classes):
            raise DataError(
                f"{what} label {lowest if lowest < 0 else highest} is outside the {len(self.classes)} classes "
                f"(0 to {len(self.classes) - 1}); correct the labels or name the class"
            )

    def split(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of ``train`` or ``test``."""
        return getattr(self, f"{name}_images"), getattr(self, f"{name}_labels")

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
        """A data set of two pairs, images (N, 3, H, W) uint8 and labels (N,) of any integer type, with its digest.

        Contiguous images are not copied. Raises ``DataError`` as the class does.
        """
        images, labels, test_images, test_labels = (_tensor(uri, array) for array in (*train, *test))
        digest = content_digest(classes, images, labels, test_images, test_labels)
        return cls(name, uri, tuple(classes), images, labels, test_images, test_labels, digest, synthetic)


def content_digest(classes: Sequence[str], *tensors: torch.Tensor) -> str:
    """SHA-256 (64 hex digits) over class names, shapes, and images and labels of train and then of test.

    It does not depend on the storage: a zip, its directory and the file prepared from it have the same digest.
    """
    # The shapes come first, so that no pixel can take the place of a label.
    header = {"classes": list(classes), "shapes": [list(tensor.shape) for tensor in tensors]}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for tensor in tensors:
        array = tensor.contiguous().numpy()
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def image_size(images: torch.Tensor) -> str:
    """Width x height, in pixels."""
    return f"{images.shape[3]}x{images.shape[2]}"


def _tensor(uri: str, array: npt.NDArray[Any]) -> torch.Tensor:
    """Images, or labels if one-dimensional."""
    if array.dtype != np.uint8 and (array.ndim != 1 or array.dtype.kind not in "iu"):
        what, form = ("labels", "integers") if array.ndim == 1 else ("images", "uint8")
        raise DataError(f"{uri}: {what} are {array.dtype}, but must be {form}")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64 if array.ndim == 1 else np.uint8))
