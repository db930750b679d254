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
    """Where it lies once it was opened, and where a staged one is looked for."""
    return cache_dir / "cifar10.npz"


def open_cifar10(cache_dir: Path, *, download: bool = True, url: str = CIFAR10_URL) -> Dataset:
    """CIFAR-10: 50,000 and 10,000 pictures of 32x32, downloaded into ``cache_dir`` where it is not there yet.

    Raises ``RemoteDataError`` (exit 1) where it cannot be downloaded from ``url``, or what came is not the original
    archive; ``DataError`` (exit 2) where it may not be downloaded, or what was unpacked is not the original;
    ``DiskFullError`` or ``StateDirError`` where the cache cannot be written.
    """
    file, root = prepared_file(cache_dir), cache_dir / "cifar10"

    def load() -> Dataset:
        # An interrupted download leaves half an archive.
        if not download and not is_unpacked(root) and not is_archive(root):
            what = "is damaged" if file.exists() else "is not there"
            raise DataError(f"{NAME}: {file} {what}, and nothing is downloaded here; {STAGE_IN_CLUSTER}")
        return _load(root, url)

    return cached(file, load, name=NAME, uri=NAME)


def is_unpacked(root: Path) -> bool:
    """Whether everything that the original archive holds lies in its folder below ``root``, by its MD5s."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    files = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
    return all(check_integrity(root / CIFAR10.base_folder / name, md5) for name, md5 in files)


def is_archive(root: Path) -> bool:
    """Whether the original archive lies in ``root``, by its MD5."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    return bool(check_integrity(root / CIFAR10.filename, CIFAR10.tgz_md5))


def _load(root: Path, url: str) -> Dataset:
    from torchvision.datasets import CIFAR10  # late: it takes a second that a cached data set need not wait

    source = type("CIFAR10", (CIFAR10,), {"url": url})  # its MD5 is checked, wherever it comes from
    archive = root / CIFAR10.filename
    try:
        # Standard output stays the command's own; torchvision prints.
        with download_timeout(), contextlib.redirect_stdout(sys.stderr):
            train, test = (source(root, train=split, download=True) for split in (True, False))
    except InterruptedRunError:
        raise
    except Exception as error:
        raise _explained(error, archive, url) from error
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


def _explained(error: Exception, archive: Path, url: str) -> CnnJobsError:
    if isinstance(error, (URLError, HTTPException, ConnectionError, TimeoutError, socket.gaierror)):
        why = getattr(error, "reason", None) or error
        if isinstance(error, HTTPError):
            why = f"HTTP {error.code} {error.reason}"
            error.close()  # it holds the connection
        return RemoteDataError(
            f"{NAME}: cannot be downloaded ({why}); "
            f"put the archive at {archive}, or train on other data (--data): "
            "a file that 'cnn-jobs data prepare' made, or an ImageFolder directory or .zip"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return from_os_error(error, archive)
    if archive.exists() and not is_archive(archive.parent):
        # It came just now, for torchvision fetches it wherever it is not whole: cut off on its way, as often as not.
        archive.unlink()
        return RemoteDataError(
            f"{NAME}: what {url} sent is not the original archive ({error}); try again, or elsewhere"
        )
    return DataError(f"{NAME}: {archive} is not the original archive ({error}); delete it and try again")
