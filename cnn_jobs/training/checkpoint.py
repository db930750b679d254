"""Checkpoints on disk: each carries its own SHA-256, for torch loads most flipped bytes without a word."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from cnn_jobs.errors import CnnJobsError, DamagedCheckpointError, InterruptedRunError, from_os_error
from cnn_jobs.system.files import atomic_file

# In the order in which they are tried.
NEWEST_FIRST = ("last.pt", "previous.pt")
# The digest stands in the comment that ends a ZIP archive (APPNOTE.TXT 4.3.16): torch and unzip read past it.
COMMENT_START = b"sha256:"
COMMENT_BYTES = len(COMMENT_START) + 64
# Of file systems that do not sync folders, and of a folder that may be written and not read.
FOLDER_SYNC_REFUSED = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)


def save_checkpoint(path: Path, content: dict[str, Any], *, keep: Path | None = None) -> Path:
    """Writes ``content`` (plain values and tensors) whole or not at all; returns ``path``.

    The file that was there takes the name ``keep`` if it is whole; ``path`` is missing at no moment. Raises
    ``DiskFullError``, ``StateDirError``, and ``CnnJobsError`` where the disk gives back other bytes than were written.
    """
    data = _sealed(content)
    with atomic_file(path) as partial:
        _write_durably(partial, data)
        if partial.read_bytes() != data:
            raise CnnJobsError(f"{path}: was written, but reads back as something else; check the disk under it")
        if keep:
            _keep_whole(path, keep)
    _sync_folder(path.parent)
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What ``save_checkpoint`` wrote, on the CPU; runs no code from the file.

    Raises ``DamagedCheckpointError`` where a single byte is not as it was written, or the file is of something else.
    """
    data = _read_whole(path)
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except InterruptedRunError:
        raise
    except Exception as error:  # of any kind: torch's reader trusts the file
        raise DamagedCheckpointError(f"{path}: is no checkpoint, torch ends with {type(error).__name__}") from error
    if not isinstance(content, dict):
        raise DamagedCheckpointError(f"{path}: is no checkpoint, it holds a {type(content).__name__}")
    return content


def newest_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The first of ``last.pt`` and ``previous.pt`` that is whole, and a line about each damaged one passed over."""
    notes: list[str] = []
    for name in NEWEST_FIRST:
        try:
            return load_checkpoint(folder / name), notes
        except FileNotFoundError:
            pass
        except DamagedCheckpointError as damage:
            notes.append(f"{damage}; passed over")
    return None, notes


def _sealed(content: dict[str, Any]) -> memoryview:
    """The file's bytes. The digest is of all before it, the comment's length included."""
    # In memory: torch's own writer turns a full disk into a RuntimeError of C++ words.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    # The archive as torch writes it ends in the length of an empty comment.
    buffer.seek(-2, os.SEEK_END)
    buffer.write(COMMENT_BYTES.to_bytes(2, "little"))
    with buffer.getbuffer() as archive:
        digest = hashlib.sha256(archive).hexdigest()
    buffer.write(COMMENT_START + digest.encode())
    return buffer.getbuffer()


def _write_durably(path: Path, data: memoryview) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
        if hasattr(os, "posix_fadvise"):
            # What is read next then comes from the disk, not from the page cache. Not every file system takes advice.
            with contextlib.suppress(OSError):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_whole(path: Path) -> bytes:
    """The file's bytes, as they were written. Raises ``DamagedCheckpointError``."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.EIO:
            raise DamagedCheckpointError(f"{path}: the disk cannot read it ({error.strerror})") from error
        # Not damage: passing over it would begin a training anew that is only out of reach.
        raise from_os_error(error, path, "read") from error
    if not data:
        raise DamagedCheckpointError(f"{path}: is empty")
    if not data[-COMMENT_BYTES:].startswith(COMMENT_START):
        raise DamagedCheckpointError(f"{path}: is cut short, or was not written by cnn-jobs: no SHA-256 at its end")
    digest = hashlib.sha256(memoryview(data)[:-COMMENT_BYTES]).hexdigest()
    if data[-COMMENT_BYTES:] != COMMENT_START + digest.encode():
        raise DamagedCheckpointError(f"{path}: is damaged: its SHA-256 is {digest[:12]}, not the one at its end")
    return data


def _keep_whole(path: Path, keep: Path) -> None:
    try:
        _read_whole(path)
    except (FileNotFoundError, DamagedCheckpointError):
        return  # a damaged file must not take the place of the last whole one
    with atomic_file(keep) as partial:
        try:
            os.link(path, partial)
        except OSError:  # a file system without hard links (SMB, FAT)
            shutil.copyfile(path, partial)


def _sync_folder(folder: Path) -> None:
    """So that a new name outlives a power loss, where the file system knows how."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in FOLDER_SYNC_REFUSED:
            raise from_os_error(error, folder) from error
