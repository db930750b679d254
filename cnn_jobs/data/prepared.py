"""The prepared file: one ``.npz`` with a whole data set, whose digest is checked at each reading."""

from __future__ import annotations

import contextlib
import logging
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.errors import DataError, DiskFullError, StateDirError, one_line
from cnn_jobs.system.files import atomic_file

FORMAT_VERSION = 1
# Digits of the digest in the name of a prepared file.
SHORT_DIGEST = 12

_TENSORS = ("train_images", "train_labels", "test_images", "test_labels")
_SCALARS = ("digest", "synthetic", "format_version")
_REMEDY = "delete it and run 'cnn-jobs data prepare'"
_log = logging.getLogger(__name__)


def write_prepared(dataset: Dataset, path: Path, *, compressed: bool) -> None:
    """Writes ``dataset`` to ``path`` atomically; images stay (N, 3, H, W), as in memory.

    ``compressed``: small, to keep and to send; otherwise it opens at the speed of the disk, for the cache. Raises
    ``DiskFullError`` (exit 1) or ``StateDirError`` (exit 2).
    """
    arrays: dict[str, Any] = {name: getattr(dataset, name).numpy() for name in _TENSORS}
    arrays["classes"] = np.array(dataset.classes)
    arrays["digest"] = np.array(dataset.digest)
    arrays["synthetic"] = np.array(dataset.synthetic)
    arrays["format_version"] = np.array(FORMAT_VERSION)
    with atomic_file(path) as partial, partial.open("wb") as file:
        (np.savez_compressed if compressed else np.savez)(file, **arrays)


def read_prepared(path: Path, *, uri: str | None = None) -> Dataset:
    """The data set in a prepared file, called ``uri`` in the result and in errors (default: the path).

    Raises ``DataError`` (exit 2) if the file cannot be read, is damaged, was not made by ``data prepare`` or does not
    have the digest that it states.
    """
    uri = uri or str(path)
    arrays = _read_arrays(path, uri)
    digest = str(arrays["digest"])
    dataset = Dataset.from_arrays(
        # It has the name of its source: shapes for shapes-0123456789ab.npz.
        name=Path(uri).stem.removesuffix(f"-{digest[:SHORT_DIGEST]}") or Path(uri).stem,
        uri=uri,
        classes=[str(name) for name in arrays["classes"]],
        train=(arrays["train_images"], arrays["train_labels"]),
        test=(arrays["test_images"], arrays["test_labels"]),
        synthetic=bool(arrays["synthetic"]),
    )
    check_digest(dataset, digest, remedy=_REMEDY)
    return dataset


def check_digest(dataset: Dataset, expected: str, *, remedy: str) -> None:
    """Raises ``DataError`` with the first digits of both if the digest is not the expected one."""
    if dataset.digest != expected:
        # Eight digits distinguish two data sets, but do not show a typing error in the ninth.
        shown = 8 if dataset.digest[:8] != expected[:8] else len(expected)
        raise DataError(f"{dataset.uri}: sha256 {dataset.digest[:shown]}, expected {expected[:shown]}; {remedy}")


def cached(file: Path, make: Callable[[], Dataset], *, name: str, uri: str) -> Dataset:
    """The data set in the cache file ``file``, or that of ``make()``, which is then written there.

    A damaged cache file is logged, deleted and made again. Raises as ``make``, and ``DiskFullError`` or
    ``StateDirError`` if the cache cannot be written.
    """
    if file.exists():
        try:
            return replace(read_prepared(file), name=name, uri=uri)
        except DataError as error:
            _log.warning("the cache of %s is damaged and made again: %s", uri, error)
            # Makes room for the new file. A file that cannot be removed is reported when it is to be replaced.
            with contextlib.suppress(OSError):
                file.unlink()
    dataset = make()
    try:
        write_prepared(dataset, file, compressed=False)
    except (DiskFullError, StateDirError) as error:
        raise type(error)(f"{error}; CNN_JOBS_CACHE_DIR names the cache") from error
    return dataset


def _read_arrays(path: Path, uri: str) -> dict[str, npt.NDArray[Any]]:
    names = (*_TENSORS, "classes", *_SCALARS)
    try:
        # No pickles: an untrusted data set must not be able to run code.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            missing = [name for name in names if name not in file.files]
            if missing:
                raise DataError(
                    f"{uri}: has no {', '.join(missing)}: not a file that 'cnn-jobs data prepare' made; "
                    "keep the images in an ImageFolder directory or zip and prepare that"
                )
            version = int(file["format_version"])
            if version != FORMAT_VERSION:
                raise DataError(f"{uri}: format version {version}, but this is {FORMAT_VERSION}; {_REMEDY}")
            arrays = {name: file[name] for name in names}
            if arrays["classes"].ndim != 1 or any(arrays[name].ndim for name in _SCALARS):
                raise ValueError("an array has a wrong number of dimensions")
            return arrays
    except OSError as error:
        raise DataError(f"{uri}: cannot be read ({error.strerror or error}); {_REMEDY}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise DataError(f"{uri}: damaged, or no prepared file ({one_line(error, 120)}); {_REMEDY}") from error
