"""One door to every data set: a URI in, a checked ``Dataset`` out."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs

from cnn_jobs.data import cifar10, imagefolder, s3, shapes
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import SHORT_DIGEST, check_digest, read_prepared, write_prepared
from cnn_jobs.errors import DataError, from_os_error
from cnn_jobs.system.environment import may_download

VALID = "'cifar10', 'shapes', an ImageFolder directory or .zip, a prepared .npz, or s3://bucket/key of one"


_SUFFIXES = (".npz", ".zip")
_log = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """``CNN_JOBS_CACHE_DIR``, else the cache directory that the operating system gives the user."""
    return Path(os.environ.get("CNN_JOBS_CACHE_DIR") or platformdirs.user_cache_dir("cnn-jobs"))


def writable_cache_dir() -> Path:
    """``default_cache_dir()``, or the user's own where that is on a read-only file system, as in a training pod."""
    wanted = default_cache_dir()
    there = next((path for path in (wanted, *wanted.parents) if path.exists()), None)
    if there is None or not os.statvfs(there).f_flag & os.ST_RDONLY:
        return wanted
    own = Path(platformdirs.user_cache_dir("cnn-jobs"))
    _log.info("%s is read-only: what is downloaded or decoded goes to %s", wanted, own)
    return own


def open_dataset(uri: str, *, cache_dir: Path | None = None, download: bool | None = None) -> Dataset:
    """The data set that ``uri`` names: see ``VALID``. A word wins over a file of that name (``./shapes``).

    Decoded and downloaded things are kept in ``cache_dir``; by default CIFAR-10 is looked for in
    ``default_cache_dir()`` and all else kept in ``writable_cache_dir()``. ``download``: whether
    CIFAR-10 may come from its authors' site (default: ``environment.may_download()``). Raises
    ``DataError`` (exit 2) for what is missing, damaged or of another form, ``RemoteDataError`` (exit 1) where
    a server does not answer, and ``DiskFullError`` or ``StateDirError`` where the cache cannot be written.
    """
    if uri == cifar10.NAME:
        may = may_download() if download is None else download
        return cifar10.open_cifar10(cache_dir or default_cache_dir(), download=may)
    if uri == shapes.NAME:
        return shapes.draw_shapes()
    if uri.startswith(s3.SCHEME):
        return _open_s3(uri, cache_dir or writable_cache_dir())
    if "://" in uri:
        parts = urlsplit(uri)
        # Not the whole of it: user, password and query may be secrets.
        raise DataError(f"{parts.scheme}://{parts.hostname or ''}...: not a data set; --data takes {VALID}")
    path = Path(uri).expanduser()
    if not uri or not path.exists():
        raise DataError(f"{uri or 'the empty word'}: no such file or directory; --data takes {VALID}")
    return _open_file(path, uri=uri, cache_dir=cache_dir)


def _open_s3(uri: str, cache_dir: Path) -> Dataset:
    if not uri.lower().endswith(_SUFFIXES):
        s3.split_uri(uri)  # credentials in it are not repeated
        raise DataError(f"{uri}: is neither .npz nor .zip; --data takes {VALID}")
    file, fresh = s3.download(uri, cache_dir)
    try:
        return _open_file(file, uri=uri, cache_dir=cache_dir)
    except DataError as error:
        file.unlink(missing_ok=True)
        if fresh:
            raise
        _log.warning("the cached copy is damaged and downloaded again: %s", error)
    file, _ = s3.download(uri, cache_dir)
    return _open_file(file, uri=uri, cache_dir=cache_dir)


def _open_file(path: Path, *, uri: str, cache_dir: Path | None) -> Dataset:
    """A directory, ``.zip`` or ``.npz`` on this machine, called ``uri`` in the result and in errors."""
    if path.is_dir() or path.suffix.lower() == ".zip":
        return imagefolder.open_imagefolder(path, uri=uri, cache_dir=cache_dir or writable_cache_dir())
    if path.suffix.lower() == ".npz":
        return read_prepared(path, uri=uri)
    raise DataError(f"{uri}: a file of this kind is not a data set; --data takes {VALID}")


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
