"""Data on a volume that cannot be written, as training pods have it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.data.sources import default_cache_dir, open_dataset, writable_cache_dir
from cnn_jobs.errors import StateDirError
from tests.data.conftest import Pictures, small_dataset
from tests.data.test_s3 import put


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Makes the cache a read-only file system with these files in it; HOME is elsewhere."""
    folder = tmp_path / "data"
    folder.mkdir()
    mounted = False

    def make(*files: Path) -> Path:
        nonlocal mounted
        try:
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a file system cannot be mounted here: {error}")
        mounted = True
        for file in files:
            shutil.copy(file, folder)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True, capture_output=True)
        monkeypatch.setenv("CNN_JOBS_CACHE_DIR", str(folder))
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        return folder

    yield make
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.integration
def test_an_object_in_a_bucket_is_kept_beside_the_volume(
    volume: Callable[..., Path], bucket: str, tmp_path: Path
) -> None:
    write_prepared(small_dataset(), tmp_path / "x.npz", compressed=True)
    uri = put(bucket, "x.npz", tmp_path / "x.npz")
    folder = volume()
    assert open_dataset(uri).digest == small_dataset().digest
    assert list(folder.iterdir()) == []
    assert len(list((tmp_path / "home/.cache/cnn-jobs").iterdir())) == 1


def test_a_zip_on_the_volume_is_decoded_beside_it(
    volume: Callable[..., Path], write_zip: Callable[..., Path], pictures: Pictures, tmp_path: Path
) -> None:
    archive = write_zip(pictures)
    expected = open_dataset(str(archive)).digest
    folder = volume(archive)
    assert open_dataset(str(folder / archive.name)).digest == expected
    assert [path.name for path in folder.iterdir()] == [archive.name]
    assert len(list((tmp_path / "home/.cache/cnn-jobs").glob("decoded-*.npz"))) == 1


@pytest.mark.parametrize("name", ["cifar10.npz", "baked.npz"])
def test_a_prepared_file_on_it_needs_no_other_place(volume: Callable[..., Path], tmp_path: Path, name: str) -> None:
    write_prepared(small_dataset(), tmp_path / name, compressed=False)
    folder = volume(tmp_path / name)
    dataset = open_dataset("cifar10" if name == "cifar10.npz" else str(folder / name), download=False)
    assert dataset.digest == small_dataset().digest
    assert not (tmp_path / "home").exists()


def test_only_a_read_only_file_system_is_left_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_zip: Callable[..., Path], pictures: Pictures
) -> None:
    """Where the cache cannot be written for another reason, the user is told, as before."""
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("CNN_JOBS_CACHE_DIR", str(tmp_path / "file/cache"))
    assert writable_cache_dir() == default_cache_dir()
    with pytest.raises(StateDirError, match="CNN_JOBS_CACHE_DIR names the cache"):
        open_dataset(str(write_zip(pictures)))
