"""CIFAR-10 as its authors publish it, through torchvision."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import cached
from cnn_jobs.environment import STAGE_IN_CLUSTER
from cnn_jobs.errors import CnnJobsError, DataError, RemoteDataError, from_os_error

NAME = "cifar10"
DOWNLOAD_TIMEOUT_S = 30.0
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"


def prepared_file(cache_dir: Path) -> Path:
    """Where it lies once it was opened, and where a staged one is looked for."""
    return cache_dir / "cifar10.npz"


def open_cifar10(cache_dir: Path, *, download: bool = True, url: str = CIFAR10_URL) -> Dataset:
    """CIFAR-10: 50,000 and 10,000 pictures of 32x32, downloaded into ``cache_dir`` where it is not there yet.

    Raises ``RemoteDataError`` (exit 1) where it cannot be downloaded from ``url``, ``DataError`` (exit 2) where it may
    not be or where the archive that lies there is not the original, ``DiskFullError`` or ``StateDirError`` where the
    cache cannot be written.
    """
    file, root = prepared_file(cache_dir), cache_dir / "cifar10"
    if not download and not file.exists() and not root.exists():
        raise DataError(f"{NAME}: {file} is not there, and nothing is downloaded here; {STAGE_IN_CLUSTER}")
    return cached(file, lambda: _load(root, url), name=NAME, uri=NAME)


def _load(root: Path, url: str) -> Dataset:
    from torchvision.datasets import CIFAR10  # late: it takes a second that a cached data set need not wait

    source = type("CIFAR10", (CIFAR10,), {"url": url})  # its MD5 is checked, wherever it comes from
    try:
        with _quietly():
            train, test = (source(root, train=split, download=True) for split in (True, False))
    except Exception as error:
        raise _explained(error, root / CIFAR10.filename) from error
    return Dataset.from_arrays(
        name=NAME,
        uri=NAME,
        classes=train.classes,
        train=_arrays(train),
        test=_arrays(test),
    )


def _arrays(split: Any) -> tuple[Any, Any]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) of what torchvision holds as (N, 32, 32, 3) and a list."""
    return np.asarray(split.data).transpose(0, 3, 1, 2), np.array(split.targets)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Standard output stays the command's own, and a network that swallows packets ends the wait.

    torchvision prints, and passes no timeout to urllib.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _explained(error: Exception, archive: Path) -> CnnJobsError:
    if isinstance(error, (URLError, HTTPException, ConnectionError, TimeoutError, socket.gaierror)):
        return RemoteDataError(
            f"{NAME}: cannot be downloaded ({getattr(error, 'reason', None) or error}); "
            f"put the archive at {archive}, or choose --data: "
            "a file that 'cnn-jobs data prepare' made, or an ImageFolder directory or .zip"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return from_os_error(error, archive)
    return DataError(f"{NAME}: {archive} is not the original archive ({error}); delete it and try again")
