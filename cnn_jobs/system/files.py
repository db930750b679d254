"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cnn_jobs.errors import from_os_error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A partial file to write; on leaving it is synced and takes the name ``path``, on an error it is removed.

    The folder is made where it is missing. Raises ``DiskFullError`` or ``StateDirError`` for what the disk refuses.
    """
    # A name of its own: two processes that write the same file do not write into each other's.
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
        # Gone after a success, and out of reach where the folder could not even be made.
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Writes a small text file whole; returns its path."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")
    return path


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes a file whole; returns its path."""
    with atomic_file(path) as partial:
        partial.write_bytes(content)
    return path


def read_or_empty(path: Path) -> str:
    """A small text file, "" where there is none, or none that can be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def make_folder(path: Path) -> Path:
    """Makes the folder and what is missing above it; returns its path. Raises as ``atomic_file``."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, path) from error
    return path


def copy_files(source: Path, target: Path) -> list[Path]:
    """Copies the files of a folder into another, each whole; returns their paths there. Raises as ``atomic_file``."""
    copied = []
    for path in sorted(each for each in source.iterdir() if each.is_file()):
        with atomic_file(target / path.name) as partial:
            shutil.copyfile(path, partial)
        copied.append(target / path.name)
    return copied
