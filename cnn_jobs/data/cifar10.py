"""CIFAR-10 as its authors publish it, through torchvision."""

from __future__ import annotations

import contextlib
import socket
import sys
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import numpy as np

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import cached
from cnn_jobs.errors import CnnJobsError, DataError, InterruptedRunError, RemoteDataError, from_os_error
from cnn_jobs.system.environment import STAGE_IN_CLUSTER, download_timeout

NAME = "cifar10"
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"


def prepared_file(cache_dir: Path) -> Path:
    """The decoded data set in the cache; a staged one has the same place."""
    return cache_dir / "cifar10.npz"


def open_cifar10(cache_dir: Path, *, download: bool = True, url: str = CIFAR10_URL) -> Dataset:
    """CIFAR-10, 50,000 and 10,000 images of 32x32, downloaded into ``cache_dir`` if it is not there yet.

    Raises ``RemoteDataError`` (exit 1) if it cannot be downloaded from ``url``, or the download is not the original
    archive; ``DataError`` (exit 2) if a ``download`` is not allowed, or the files in the cache are not the original;
    ``DiskFullError`` or ``StateDirError`` if the cache cannot be written.
    """
    file, root = prepared_file(cache_dir), cache_dir / "cifar10"

    def load() -> Dataset:
        # The archive of an interrupted download is incomplete.
        if not download and not is_unpacked(root) and not is_archive(root):
            what = "is damaged" if file.exists() else "is not there"
            raise DataError(f"{NAME}: {file} {what}, and nothing is downloaded here; {STAGE_IN_CLUSTER}")
        return _load(root, url)

    return cached(file, load, name=NAME, uri=NAME)


def is_unpacked(root: Path) -> bool:
    """Whether the folder below ``root`` holds all files of the original archive, by their MD5s."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    files = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
    return all(check_integrity(root / CIFAR10.base_folder / name, md5) for name, md5 in files)


def is_archive(root: Path) -> bool:
    """Whether ``root`` holds the original archive, by its MD5."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    return bool(check_integrity(root / CIFAR10.filename, CIFAR10.tgz_md5))


def _load(root: Path, url: str) -> Dataset:
    from torchvision.datasets import CIFAR10  # takes a second that a cached data set need not wait

    source = type("CIFAR10", (CIFAR10,), {"url": url})  # torchvision checks the MD5 for every URL
    archive = root / CIFAR10.filename
    try:
        # torchvision prints, and standard output belongs to the command.
        with download_timeout(), contextlib.redirect_stdout(sys.stderr):
            train, test = (source(root, train=split, download=True) for split in (True, False))
    except InterruptedRunError:
        raise
    except Exception as error:
        raise _translated(error, archive, url) from error
    return Dataset.from_arrays(name=NAME, uri=NAME, classes=train.classes, train=_arrays(train), test=_arrays(test))


def _arrays(split: Any) -> tuple[Any, Any]:
    """Images (N, 3, 32, 32) uint8 and labels (N,); torchvision has (N, 32, 32, 3) and a list."""
    return np.asarray(split.data).transpose(0, 3, 1, 2), np.array(split.targets)


def _translated(error: Exception, archive: Path, url: str) -> CnnJobsError:
    if isinstance(error, (URLError, HTTPException, ConnectionError, TimeoutError, socket.gaierror)):
        why = getattr(error, "reason", None) or error
        if isinstance(error, HTTPError):
            why = f"HTTP {error.code} {error.reason}"
            error.close()  # releases the connection
        return RemoteDataError(
            f"{NAME}: cannot be downloaded ({why}); put the archive at {archive}, or train on other data (--data): "
            "a file that 'cnn-jobs data prepare' made, or an ImageFolder directory or .zip"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return from_os_error(error, archive)
    if archive.exists() and not is_archive(archive.parent):
        # It was downloaded just now, as torchvision replaces a damaged one; most likely the transfer was cut off.
        archive.unlink()
        return RemoteDataError(
            f"{NAME}: the download from {url} is not the original archive ({error}); try again, or another URL"
        )
    return DataError(f"{NAME}: {archive} is not the original archive ({error}); delete it and try again")
