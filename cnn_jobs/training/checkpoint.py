"""Checkpoints on disk. Each carries its own SHA-256: torch loads most flipped bytes without an error."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cnn_jobs.errors import CnnJobsError, DamagedCheckpointError, InterruptedRunError, from_os_error
from cnn_jobs.system.files import atomic_file, link_or_copy, sync_folder

if TYPE_CHECKING:
    from cnn_jobs.training.state import TrainState

# In the order in which they are tried.
NEWEST_FIRST = ("last.pt", "previous.pt")
# The digest is in the comment that ends a ZIP archive (APPNOTE.TXT 4.3.16): torch and unzip ignore it.
COMMENT_START = b"sha256:"
COMMENT_BYTES = len(COMMENT_START) + 64


class Checkpointer:
    """Decides when the loop saves its state; this base class never saves."""

    def due(self) -> bool:
        """Whether to ``save`` now; asked after every step."""
        return False

    def save(self, state: TrainState) -> object:
        """Saves the state between two steps."""

    def after_validation(self, state: TrainState) -> None:
        """Called after every validation."""


def save_checkpoint(path: Path, content: dict[str, Any], *, keep: Path | None = None) -> Path:
    """Writes ``content`` (plain values and tensors) atomically; returns ``path``.

    ``keep``: another name for the previous file, if that is undamaged; ``path`` itself exists at every moment. Raises
    ``DiskFullError``, ``StateDirError``, and ``CnnJobsError`` where the disk returns other bytes than were written.
    """
    data = _sealed(content)
    with atomic_file(path) as partial:
        _write_durably(partial, data)
        if partial.read_bytes() != data:
            raise CnnJobsError(f"{path}: was written, but reads back with another content; check the disk under it")
        if keep:
            _keep_undamaged(path, keep)
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise from_os_error(error, path.parent) from error
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What ``save_checkpoint`` wrote, on the CPU; runs no code from the file.

    Raises ``DamagedCheckpointError`` where a byte differs from what was written, or the file is something else.
    """
    data = _read_undamaged(path)
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except InterruptedRunError:
        raise
    except Exception as error:  # of any kind: torch's reader trusts the file
        raise DamagedCheckpointError(f"{path}: is not a checkpoint, torch raised {type(error).__name__}") from error
    if not isinstance(content, dict):
        raise DamagedCheckpointError(f"{path}: is not a checkpoint, it holds a {type(content).__name__}")
    return content


def newest_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The first undamaged one of ``last.pt`` and ``previous.pt``, and a line for each damaged one that was skipped."""
    notes: list[str] = []
    for name in NEWEST_FIRST:
        try:
            return load_checkpoint(folder / name), notes
        except FileNotFoundError:
            pass
        except DamagedCheckpointError as damage:
            notes.append(f"{damage}; skipped")
    return None, notes


def _sealed(content: dict[str, Any]) -> memoryview:
    """The file's bytes. The digest covers all before it, the comment's length included."""
    # In memory: torch's own writer turns a full disk into a RuntimeError of C++.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    # The archive ends with the length of an empty comment.
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
            # So that the next read comes from the disk, not from the page cache. Not every file system takes advice.
            with contextlib.suppress(OSError):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_undamaged(path: Path) -> bytes:
    """The file's bytes. Raises ``DamagedCheckpointError``."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.EIO:
            raise DamagedCheckpointError(f"{path}: the disk cannot read it ({error.strerror})") from error
        # Not damage: skipping it would restart a training that is only out of reach.
        raise from_os_error(error, path, "read") from error
    if not data:
        raise DamagedCheckpointError(f"{path}: is empty")
    if not data[-COMMENT_BYTES:].startswith(COMMENT_START):
        raise DamagedCheckpointError(f"{path}: is cut short, or was not written by cnn-jobs: no SHA-256 at its end")
    digest = hashlib.sha256(memoryview(data)[:-COMMENT_BYTES]).hexdigest()
    if data[-COMMENT_BYTES:] != COMMENT_START + digest.encode():
        raise DamagedCheckpointError(f"{path}: is damaged: its SHA-256 is {digest[:12]}, not the one at its end")
    return data


def _keep_undamaged(path: Path, keep: Path) -> None:
    try:
        _read_undamaged(path)
    except (FileNotFoundError, DamagedCheckpointError):
        return  # a damaged file must not replace the last undamaged one
    with atomic_file(keep) as partial:
        link_or_copy(path, partial)
