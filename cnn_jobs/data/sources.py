"""Sources of data sets: opens any of them by its URI, and prepares, verifies and stages them."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from cnn_jobs.data import cifar10, imagefolder, s3, shapes
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import SHORT_DIGEST, check_digest, read_prepared, write_prepared
from cnn_jobs.errors import DataError, UserError, from_os_error
from cnn_jobs.system.environment import may_download

VALID = "'cifar10', 'shapes', an ImageFolder directory or .zip, a prepared .npz, or s3://bucket/key of one"
WEB = ("https://", "http://")
_SUFFIXES = (".npz", ".zip")
_log = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """``CNN_JOBS_CACHE_DIR``, or else the operating system's cache directory of the user."""
    return Path(os.environ.get("CNN_JOBS_CACHE_DIR") or _user_cache_dir())


def writable_cache_dir() -> Path:
    """``default_cache_dir()``; the user's if that is on a read-only file system, as in a training pod."""
    default = default_cache_dir()
    existing = next((path for path in (default, *default.parents) if path.exists()), None)
    if existing is None or not os.statvfs(existing).f_flag & os.ST_RDONLY:
        return default
    _log.info("%s is read-only: downloaded and decoded data goes to %s", default, _user_cache_dir())
    return _user_cache_dir()


def _user_cache_dir() -> Path:
    return Path(platformdirs.user_cache_dir("cnn-jobs"))


# -- opening ---------------------------------------------------------------------------------------------------------


def open_dataset(uri: str, *, cache_dir: Path | None = None, download: bool | None = None) -> Dataset:
    """The data set that ``uri`` names: see ``VALID``. ``shapes`` is the generated one, ``./shapes`` a directory.

    Decoded and downloaded data is kept in ``cache_dir`` (default: for CIFAR-10 ``default_cache_dir()``, otherwise
    ``writable_cache_dir()``). ``download``: whether CIFAR-10 may be downloaded from its authors (default:
    ``environment.may_download()``). Raises ``DataError`` (exit 2) for missing or damaged data and other forms,
    ``RemoteDataError`` (exit 1) if a server does not answer, and ``DiskFullError`` or ``StateDirError`` if the cache
    cannot be written.
    """
    if uri == cifar10.NAME:
        allowed = may_download() if download is None else download
        return cifar10.open_cifar10(cache_dir or default_cache_dir(), download=allowed)
    if uri == shapes.NAME:
        return shapes.draw_shapes()
    if uri.startswith(s3.SCHEME):
        return _open_s3(uri, cache_dir or writable_cache_dir())
    if "://" in uri:
        # What follows may hold a password or a token.
        raise DataError(f"{uri.partition('://')[0]}://...: not a data set; --data takes {VALID}")
    path = Path(uri).expanduser()
    if not uri or not path.exists():
        raise DataError(f"{uri or 'an empty name'}: no such file or directory; --data takes {VALID}")
    return _open_file(path, uri=uri, cache_dir=cache_dir)


def _open_s3(uri: str, cache_dir: Path) -> Dataset:
    if not uri.lower().endswith(_SUFFIXES):
        s3.split_uri(uri)  # raises without repeating credentials
        raise DataError(f"{uri}: is neither .npz nor .zip; --data takes {VALID}")
    file, fresh = s3.download(uri, cache_dir)
    try:
        return _open_file(file, uri=uri, cache_dir=cache_dir)
    except DataError as error:
        file.unlink(missing_ok=True)
        if fresh:
            raise
        _log.warning("the cached copy is damaged and downloaded again: %s", error)
    return _open_s3(uri, cache_dir)


def _open_file(path: Path, *, uri: str, cache_dir: Path | None) -> Dataset:
    """A local directory, ``.zip`` or ``.npz``, called ``uri`` in the result and in errors."""
    if path.is_dir() or path.suffix.lower() == ".zip":
        return imagefolder.open_imagefolder(path, uri=uri, cache_dir=cache_dir or writable_cache_dir())
    if path.suffix.lower() == ".npz":
        return read_prepared(path, uri=uri)
    raise DataError(f"{uri}: a file of this kind is not a data set; --data takes {VALID}")


# -- preparing and verifying -----------------------------------------------------------------------------------------


def prepare(src: str, dest: str) -> str:
    """Writes the data set ``src`` as one file and returns its path or URI.

    ``dest``: a directory or ``s3://bucket/prefix/``, where the file is named ``<name>-<digest>.npz`` with twelve
    digits; or the name of an ``.npz``. An intact file of the same digest is kept. Raises as ``open_dataset``, and
    ``DiskFullError`` or ``StateDirError`` if the file cannot be written.
    """
    if "://" in dest and not dest.startswith(s3.SCHEME):
        scheme = dest.split("://")[0]
        raise DataError(f"{scheme}://...: not a place for a file; give a directory or s3://bucket/prefix/")
    dataset = open_dataset(src, download=True)
    name = f"{dataset.name}-{dataset.digest[:SHORT_DIGEST]}.npz"
    is_file = dest.lower().endswith(".npz")
    if dest.startswith(s3.SCHEME):
        uri = dest if is_file else f"{dest.rstrip('/')}/{name}"
        _upload(dataset, uri)
        return uri
    path = Path(dest).expanduser() if is_file else Path(dest).expanduser() / name
    found = _intact(path)
    if found is None or found.digest != dataset.digest:
        write_prepared(dataset, path, compressed=True)
    return str(path)


def _upload(dataset: Dataset, uri: str) -> None:
    found = s3.head(uri)
    if found and found.digest == dataset.digest:
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


def _intact(path: Path) -> Dataset | None:
    """The data set in a prepared file; ``None`` if there is no such file, or it is damaged."""
    try:
        return read_prepared(path) if path.exists() else None
    except DataError as error:
        _log.warning("%s is damaged and replaced: %s", path, error)
        return None
    except OSError as error:
        raise from_os_error(error, path) from error


def verify(uri: str, expected_digest: str | None = None) -> Dataset:
    """The data set that ``uri`` names, checked; its digest must begin with ``expected_digest``.

    Raises ``DataError`` (exit 2) if it does not, or if the expected digest is not 12 to 64 hexadecimal digits, and as
    ``open_dataset``.
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


# -- staging ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Staged:
    """A file where training looks for it. ``digest``: SHA-256, 64 hex digits; ``fresh``: this call wrote it."""

    path: Path
    digest: str
    fresh: bool


def stage_cifar10(source: str = "") -> Staged:
    """Puts CIFAR-10 into the cache directory, where ``--data cifar10`` finds it.

    ``source``: "" for its authors' site, the http address of a mirror of their archive, whose MD5 must be the same, or
    any data set that ``--data`` takes. Raises as ``open_dataset``, and ``UserError`` if another data set is there.
    """
    cache_dir = default_cache_dir()
    file = cifar10.prepared_file(cache_dir)
    found = _intact(file)
    if not source or source.startswith(WEB):
        dataset = found or cifar10.open_cifar10(cache_dir, url=source or cifar10.CIFAR10_URL)
        # The archive and its files are three times the size of the file that is kept.
        shutil.rmtree(cache_dir / "cifar10", ignore_errors=True)
        return Staged(file, dataset.digest, found is None)
    with tempfile.TemporaryDirectory(prefix="cnn-jobs-") as folder:  # the volume keeps no second copy
        dataset = open_dataset(source, cache_dir=Path(folder))
    if found is None:
        write_prepared(dataset, file, compressed=False)
    elif found.digest != dataset.digest:
        raise UserError(
            f"{file} holds another data set (sha256 {found.digest[:12]}) than {source} ({dataset.digest[:12]}); "
            "delete it, or stage that one"
        )
    return Staged(file, dataset.digest, found is None)
