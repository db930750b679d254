"""Small picture sets, written the way users have them."""

from __future__ import annotations

import io
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn_jobs.data.dataset import Dataset

Pictures = dict[str, bytes]


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test alone."""
    path = tmp_path / "cache"
    monkeypatch.setenv("CNN_JOBS_CACHE_DIR", str(path))
    return path


def png(width: int, height: int, seed: int, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def pictures() -> Pictures:
    """Relative name -> PNG: two classes, 3 + 2 training and 1 + 1 test pictures, 5 wide and 4 high."""
    names = [
        *("train/cat/0.png", "train/cat/1.png", "train/cat/2.png", "train/dog/0.png", "train/dog/1.png"),
        *("test/cat/0.png", "test/dog/0.png"),
    ]
    return {name: png(5, 4, seed) for seed, name in enumerate(names)}


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[[Pictures], Path]:
    def write(pictures: Pictures) -> Path:
        root = tmp_path / "animals"
        for name, content in pictures.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        return root

    return write


@pytest.fixture
def write_zip(tmp_path: Path) -> Callable[..., Path]:
    def write(pictures: Pictures, name: str = "animals.zip") -> Path:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for file, content in pictures.items():
                archive.writestr(file, content)
        return tmp_path / name

    return write


def small_dataset(seed: int = 0, *, train: int = 6, test: int = 4, name: str = "small") -> Dataset:
    """Random pictures of 4x5 in three classes."""
    random = np.random.default_rng(seed)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        return random.integers(0, 256, (count, 3, 4, 5), dtype=np.uint8), np.arange(count) % 3

    return Dataset.from_arrays(name=name, uri=name, classes=("a", "b", "c"), train=split(train), test=split(test))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
