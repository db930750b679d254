"""The prepared file: one ``.npz`` that holds a whole data set, checked by its digest whenever it is read."""

from __future__ import annotations

import contextlib
import logging
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.errors import DataError, DiskFullError, StateDirError
from cnn_jobs.system.files import atomic_file

FORMAT_VERSION = 1
SHORT_DIGEST = 12
"""Digits of the digest in the name of a prepared file."""

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels", "classes")
_MARKS = ("digest", "synthetic", "format_version")
_REMEDY = "delete it and run 'cnn-jobs data prepare'"
_log = logging.getLogger(__name__)


def write_prepared(dataset: Dataset, path: Path, *, compressed: bool) -> None:
    """Write ``dataset`` to ``path``, whole or not at all; images stay (N, 3, H, W), as they are in memory.

    ``compressed`` makes a small file (to keep and to send), without it one that opens at the speed of the
    disk (the cache). Raises ``DiskFullError`` (exit 1) where there is no room, ``StateDirError`` (exit 2)
    where it cannot be written.
    """
    arrays: dict[str, Any] = {
        "train_images": dataset.train_images.numpy(),
        "train_labels": dataset.train_labels.numpy(),
        "test_images": dataset.test_images.numpy(),
        "test_labels": dataset.test_labels.numpy(),
        "classes": np.array(dataset.classes),
        "digest": np.array(dataset.digest),
        "synthetic": np.array(dataset.synthetic),
        "format_version": np.array(FORMAT_VERSION),
    }
    with atomic_file(path) as partial, partial.open("wb") as file:
        (np.savez_compressed if compressed else np.savez)(file, **arrays)


def read_prepared(path: Path, *, uri: str | None = None) -> Dataset:
    """The data set in a prepared file; ``uri`` is what it is called in the result and in errors.

    Raises ``DataError`` (exit 2) where the file cannot be read, is damaged, was not made by ``data prepare``
    or does not have the digest that it names.
    """
    uri = uri or str(path)
    arrays = _arrays(path, uri)
    stated = str(arrays["digest"])
    dataset = Dataset.from_arrays(
        name=_without_digest(Path(uri).stem, stated),
        uri=uri,
        classes=[str(name) for name in arrays["classes"]],
        train=(arrays["train_images"], arrays["train_labels"]),
        test=(arrays["test_images"], arrays["test_labels"]),
        synthetic=bool(arrays["synthetic"]),
    )
    check_digest(dataset, stated, remedy=_REMEDY)
    return dataset


def check_digest(dataset: Dataset, expected: str, *, remedy: str) -> None:
    """Raise ``DataError`` where the digest is not the expected one; the line shows the first digits of both."""
    if dataset.digest != expected:
        # Eight digits tell two data sets apart, but not a slip of the pen in the ninth.
        shown = 8 if dataset.digest[:8] != expected[:8] else len(expected)
        raise DataError(f"{dataset.uri}: sha256 {dataset.digest[:shown]}, expected {expected[:shown]}; {remedy}")


def cached(file: Path, make: Callable[[], Dataset], *, name: str, uri: str) -> Dataset:
    """The data set in the cache file ``file``, or that of ``make()``, which is then written there.

    A cache file that is damaged is never trusted: it is deleted and made again, with a line in the log.
    Raises what ``make`` raises, and ``DiskFullError`` or ``StateDirError`` where the cache cannot be written.
    """
    if file.exists():
        try:
            return _renamed(read_prepared(file), name, uri)
        except DataError as error:
            _log.warning("the cache of %s is damaged and made again: %s", uri, error)
            # Room for the new one; what cannot be removed is reported when that is to take its place.
            with contextlib.suppress(OSError):
                file.unlink()
    dataset = make()
    try:
        write_prepared(dataset, file, compressed=False)
    except (DiskFullError, StateDirError) as error:
        raise type(error)(f"{error}; CNN_JOBS_CACHE_DIR names the cache") from error
    return dataset


def _renamed(dataset: Dataset, name: str, uri: str) -> Dataset:
    return Dataset(**{**vars(dataset), "name": name, "uri": uri})


def _without_digest(stem: str, digest: str) -> str:
    """``shapes`` for ``shapes-0123456789ab``: a prepared file is called what its source was called."""
    return stem.removesuffix(f"-{digest[:SHORT_DIGEST]}") or stem


def _arrays(path: Path, uri: str) -> dict[str, npt.NDArray[Any]]:
    """Every array of the file, or a ``DataError`` that says what is wrong with it."""
    try:
        # Never pickles: a data set from somebody else must not be able to run code.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            missing = [name for name in (*_ARRAYS, *_MARKS) if name not in file.files]
            if missing:
                raise DataError(
                    f"{uri}: has no {', '.join(missing)}: not a file that 'cnn-jobs data prepare' made; "
                    "keep the pictures in an ImageFolder directory or zip and prepare that"
                )
            version = int(file["format_version"])
            if version != FORMAT_VERSION:
                raise DataError(f"{uri}: format version {version}, but this is {FORMAT_VERSION}; {_REMEDY}")
            arrays = {name: file[name] for name in (*_ARRAYS, *_MARKS)}
            if arrays["classes"].ndim != 1 or any(arrays[name].ndim for name in _MARKS):
                raise ValueError("an array has another number of dimensions")
            return arrays
    except OSError as error:
        raise DataError(f"{uri}: cannot be read ({error.strerror or error}); {_REMEDY}") from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        NotImplementedError,
    ) as error:
        raise DataError(f"{uri}: damaged, or no prepared file ({_one_line(error)}); {_REMEDY}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
