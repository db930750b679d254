"""Staging a data set once: one compact, digest-named file, on disk or in a bucket."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cnn_jobs.data import s3
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import SHORT_DIGEST, check_digest, read_prepared, write_prepared
from cnn_jobs.data.sources import default_cache_dir, open_dataset
from cnn_jobs.errors import DataError, from_os_error


def prepare(src: str, dest: str) -> str:
    """Write the data set ``src`` as one file and return its path or URI.

    ``dest`` is a directory or ``s3://bucket/prefix/``, where the file is named ``<name>-<digest>.npz`` with
    twelve digits, or an ``.npz`` by name. A whole file of the same digest that is there already is kept.
    Raises what ``open_dataset`` raises, and ``DiskFullError`` or ``StateDirError`` where the file cannot be
    written.
    """
    if "://" in dest and not dest.startswith(s3.SCHEME):
        raise DataError(
            f"{dest.split('://')[0]}://...: not a place for a file; give a directory or s3://bucket/prefix/"
        )
    dataset = open_dataset(src, download=True)
    name = f"{dataset.name}-{dataset.digest[:SHORT_DIGEST]}.npz"
    by_name = dest.lower().endswith(".npz")
    if dest.startswith(s3.SCHEME):
        uri = dest if by_name else f"{dest.rstrip('/')}/{name}"
        _prepare_in_bucket(dataset, uri)
        return uri
    path = Path(dest).expanduser() if by_name else Path(dest).expanduser() / name
    _prepare_on_disk(dataset, path)
    return str(path)


def verify(uri: str, expected_digest: str | None = None) -> Dataset:
    """The data set that ``uri`` names, whole and readable; its digest must begin with ``expected_digest``.

    Raises ``DataError`` (exit 2) where it is another one, or where the expected digest is not at least twelve
    hexadecimal digits; else what ``open_dataset`` raises.
    """
    if expected_digest is not None:
        expected_digest = expected_digest.lower()
        if not SHORT_DIGEST <= len(expected_digest) <= 64 or set(expected_digest) - set("0123456789abcdef"):
            raise DataError(
                f"digest is {expected_digest!r}, but must be {SHORT_DIGEST} to 64 hexadecimal digits; "
                "see 'cnn-jobs data verify URI'"
            )
    dataset = open_dataset(uri)
    if expected_digest and not dataset.digest.startswith(expected_digest):
        check_digest(dataset, expected_digest, remedy="choose the data set of that digest, or leave --digest out")
    return dataset


def _prepare_on_disk(dataset: Dataset, path: Path) -> None:
    try:
        if path.exists() and read_prepared(path).digest == dataset.digest:
            return
    except DataError:
        pass  # damaged, or no prepared file at all: it is replaced
    except OSError as error:
        raise from_os_error(error, path) from error
    write_prepared(dataset, path, compressed=True)


def _prepare_in_bucket(dataset: Dataset, uri: str) -> None:
    there = s3.look(uri)
    if there and there.digest == dataset.digest:
        return
    cache_dir = default_cache_dir()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="prepare-", dir=cache_dir) as folder:
            file = Path(folder) / "data.npz"
            write_prepared(dataset, file, compressed=True)
            s3.upload(file, uri, dataset.digest)
    except OSError as error:
        raise from_os_error(error, cache_dir) from error
