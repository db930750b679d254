"""Small sets of images, as files."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.datasets import Images, png


@pytest.fixture
def images() -> Images:
    """Relative name -> PNG: two classes, 3 + 2 training and 1 + 1 test images, 5 wide and 4 high."""
    names = [
        *("train/cat/0.png", "train/cat/1.png", "train/cat/2.png", "train/dog/0.png", "train/dog/1.png"),
        *("test/cat/0.png", "test/dog/0.png"),
    ]
    return {name: png(5, 4, seed) for seed, name in enumerate(names)}


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[[Images], Path]:
    def write(images: Images) -> Path:
        root = tmp_path / "animals"
        for name, content in images.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        return root

    return write


@pytest.fixture
def write_zip(tmp_path: Path) -> Callable[..., Path]:
    def write(images: Images, name: str = "animals.zip") -> Path:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for file, content in images.items():
                archive.writestr(file, content)
        return tmp_path / name

    return write


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
