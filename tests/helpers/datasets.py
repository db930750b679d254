"""Small data sets, and the files in which users have them."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn_jobs.data.dataset import Dataset

Images = dict[str, bytes]
CIFAR10_CLASSES = ("airplane", "automobile", "bird")


def png(width: int, height: int, seed: int, mode: str = "RGB") -> bytes:
    """A PNG of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def small_dataset(seed: int = 0, *, train: int = 6, test: int = 4, name: str = "small") -> Dataset:
    """Random images of 5x4 in three classes."""
    random = np.random.default_rng(seed)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        return random.integers(0, 256, (count, 3, 4, 5), dtype=np.uint8), np.arange(count) % 3

    return Dataset.from_arrays(name=name, uri=name, classes=("a", "b", "c"), train=split(train), test=split(test))


def cifar10_archive(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny archive with the layout of CIFAR-10's, in the place of the real one; torchvision gets its checksums."""
    from torchvision.datasets import CIFAR10

    def pickled(**content: object) -> bytes:
        # As Python 2 wrote the real archive: protocol 2, numpy under its old name.
        return pickle.dumps(content, protocol=2).replace(b"numpy._core", b"numpy.core")

    random = np.random.default_rng(0)
    members = {
        name: pickled(data=random.integers(0, 256, (2, 3072), dtype=np.uint8), labels=[number % 3, 2])
        for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"])
    }
    members["batches.meta"] = pickled(label_names=list(CIFAR10_CLASSES))
    path = cache_dir / "cifar10" / "cifar-10-python.tar.gz"
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in members.items()}
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in members if name.startswith("data")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setitem(CIFAR10.meta, "md5", md5["batches.meta"])
    return path


def put(bucket: str, key: str, path: Path) -> str:
    """Uploads a file; returns its URI."""
    import boto3

    boto3.client("s3").upload_file(str(path), bucket, key)
    return f"s3://{bucket}/{key}"


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
