"""File operations that a crash cannot leave half done: files appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cnn_jobs.errors import from_os_error

# File systems that do not sync folders, and folders that may be written but not read.
FOLDER_SYNC_REFUSED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a partial file to write. On leaving it is synced and renamed to ``path``; on an error it is removed.

    Creates the folder where it is missing. Raises ``DiskFullError``, ``StateDirError`` or ``DiskError`` for what the
    disk refuses.
    """
    # A unique name: two processes that write the same file must not write into each other's.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        raise from_os_error(error, path) from error
    finally:
        # Renamed after a success, and unreachable where the folder could not be created.
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Writes a text file atomically; returns its path."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes a file atomically; returns its path."""
    with atomic_file(path) as partial:
        partial.write_bytes(content)
    return path


def read_or_empty(path: Path) -> str:
    """The stripped text of a small file, "" where it is missing or unreadable."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def make_folder(path: Path) -> Path:
    """Creates the folder and its parents; returns its path. Raises as ``atomic_file``."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, path) from error
    return path


def copy_files(source: Path, target: Path) -> list[Path]:
    """Copies the files of a folder into another, each atomically; returns the new paths. Raises as ``atomic_file``."""
    copied = []
    for path in sorted(each for each in source.iterdir() if each.is_file()):
        with atomic_file(target / path.name) as partial:
            shutil.copyfile(path, partial)
        copied.append(target / path.name)
    return copied


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file that is only ever replaced, never written into. Raises ``OSError``."""
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links, such as SMB or FAT
        shutil.copyfile(source, target)


def sync_folder(folder: Path) -> None:
    """Makes new names in the folder survive a power loss, where the file system supports it. Raises ``OSError``."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in FOLDER_SYNC_REFUSED:
            raise


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits. Raises ``OSError``."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
