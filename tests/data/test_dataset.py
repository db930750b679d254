from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cnn_jobs.data.dataset import Dataset, content_digest
from cnn_jobs.errors import DataError
from tests.helpers.datasets import small_dataset

TENSORS = ("train_images", "train_labels", "test_images", "test_labels")


def test_digest_is_the_sha256_over_names_shapes_images_and_labels() -> None:
    dataset = small_dataset()
    header = {"classes": ["a", "b", "c"], "shapes": [[6, 3, 4, 5], [6], [4, 3, 4, 5], [4]]}
    content = json.dumps(header, sort_keys=True).encode()
    for images, labels in (dataset.split("train"), dataset.split("test")):
        content += images.numpy().tobytes() + labels.numpy().astype("<i8").tobytes()
    assert dataset.digest == hashlib.sha256(content).hexdigest()
    assert small_dataset(name="another name").digest == dataset.digest


@given(field=st.sampled_from(TENSORS), position=st.integers(0, 10**6), change=st.integers(1, 255))
def test_any_changed_pixel_or_label_changes_the_digest(field: str, position: int, change: int) -> None:
    dataset = small_dataset()
    tensors = {name: getattr(dataset, name).clone() for name in TENSORS}
    flat = tensors[field].view(-1)
    flat[position % flat.numel()] += change
    assert content_digest(dataset.classes, *tensors.values()) != dataset.digest


@pytest.mark.parametrize("classes", [("a", "b", "d"), ("a", "c", "b"), ("a", "b", "c", "d")])
def test_other_class_names_change_the_digest(classes: tuple[str, ...]) -> None:
    dataset = small_dataset()
    assert content_digest(classes, *dataset.split("train"), *dataset.split("test")) != dataset.digest


def test_an_image_moved_from_test_to_train_changes_the_digest() -> None:
    images, labels = np.zeros((6, 3, 2, 2), np.uint8), np.zeros(6, np.int64)

    def divided(at: int) -> Dataset:
        return Dataset.from_arrays(
            name="x", uri="x", classes=("a",), train=(images[:at], labels[:at]), test=(images[at:], labels[at:])
        )

    assert divided(3).digest != divided(4).digest


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, ">i8"])
def test_labels_of_any_integer_type_are_the_same_data_set(dtype: str) -> None:
    dataset = small_dataset()
    images, labels = dataset.train_images.numpy(), dataset.train_labels.numpy().astype(dtype)
    test = tuple(tensor.numpy() for tensor in dataset.split("test"))
    other = Dataset.from_arrays(name="x", uri="x", classes="abc", train=(images, labels), test=test)
    assert other.digest == dataset.digest
    assert other.train_labels.dtype == torch.int64
    assert other.train_images.data_ptr() == images.ctypes.data  # contiguous images are not copied


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ()}, r"class names are \[\]"),
        ({"classes": ("a", "b", "a")}, "class names are"),
        ({"classes": ("a", "b")}, r"train label 2 is outside the 2 classes \(0 to 1\)"),
        ({"train_labels": torch.tensor([0, 1, 2, 0, 1, -1])}, "train label -1 is outside the 3 classes"),
        ({"test_labels": torch.tensor([0, 1, 2, 3])}, "test label 3 is outside the 3 classes"),
        ({"test_labels": torch.tensor([0, 1, 2])}, r"test labels are \(3,\) torch.int64, but must be \(4,\)"),
        ({"test_labels": torch.zeros(4)}, r"test labels are \(4,\) torch.float32"),
        ({"train_images": torch.zeros(6, 3, 4, 5)}, "train images are .* torch.float32, but must be"),
        ({"train_images": torch.zeros(6, 1, 4, 5, dtype=torch.uint8)}, r"train images are \(6, 1, 4, 5\)"),
        ({"train_images": torch.zeros(6, 3, 5, 5, dtype=torch.uint8)}, "are 5x5, test images 5x4"),
        ({"train_images": torch.zeros(6, 3, 5, 4, dtype=torch.uint8).mT}, "must be contiguous"),
        (
            {"test_images": torch.zeros(0, 3, 4, 5, dtype=torch.uint8), "test_labels": torch.zeros(0).long()},
            "test has no images",
        ),
    ],
)
def test_an_invalid_tensor_is_rejected_in_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        replace(small_dataset(), **change)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 3, 2, 2), np.float32), np.zeros(2, np.int64), "images are float32, but must be uint8"),
        (np.zeros((2, 3, 2, 2), np.uint8), np.zeros(2), "labels are float64, but must be integers"),
        (np.zeros((2, 3, 2, 2), np.uint8), np.zeros((2, 1), np.int64), "are int64, but must be uint8"),
    ],
)
def test_arrays_of_another_type_are_rejected(images: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset.from_arrays(name="x", uri="x", classes=["a"], train=(images, labels), test=(images, labels))
