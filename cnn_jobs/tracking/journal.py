"""The append-only record of all that a run has to tell MLflow: its writer, and a reader that follows it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

from cnn_jobs.errors import from_os_error
from cnn_jobs.files import make_folder
from cnn_jobs.tracking.journal_format import SHORTEST, Damage, Entry, encode, join_damage, scan

READ_BYTES = 4 << 20


class Journal:
    """The writer. One process at a time (the caller holds a lock), any number of threads.

    ``entries``: what was whole at opening; assign ``[]`` to free the memory. ``damage``: what was not, and stays in
    the file as evidence. ``torn_bytes``: what was cut off at the end, where a write had not been completed.
    ``last_seq``: the highest number given out. What the disk refuses raises ``DiskFullError`` or ``StateDirError``.
    """

    def __init__(self, path: Path, *, after: int = 0) -> None:
        """Opens or makes the file. ``after``: the highest number acknowledged; a reused one would count as sent."""
        self.path = path
        self.entries: list[Entry] = []
        self.torn_bytes = 0
        self._lock, self._sync_lock = threading.Lock(), threading.Lock()
        self._cut_at: int | None = None
        # What a killed process appended may not be on the disk yet.
        self._unsynced = True
        make_folder(path.parent)
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                lost = self._read_and_mend()
                _sync_folder(path.parent)
            except BaseException:
                os.close(self._descriptor)
                raise
        except OSError as error:
            raise from_os_error(error, path) from error
        self.last_seq = max(after, max((entry.seq for entry in self.entries), default=0) + lost)

    def _read_and_mend(self) -> int:
        """Fills ``entries`` and ``damage``, mends the end; returns how many records are lost there at most."""
        reader = Reader(self.path)
        while entries := reader.read():
            self.entries += entries
        self.damage = reader.damage
        tail = os.pread(self._descriptor, os.fstat(self._descriptor).st_size - reader.offset, reader.offset)
        entries, damage = scan(tail, reader.offset)
        end = reader.offset + len(tail)
        if damage and damage[-1].offset + damage[-1].length == end:
            torn = damage.pop()
            self.torn_bytes, end = torn.length, torn.offset
            os.ftruncate(self._descriptor, end)
        if entries:
            self._write(b"\n")
        self.entries += entries
        join_damage(self.damage, damage)
        last = self.damage[-1] if self.damage else Damage(0, 0)
        return max(1, last.length // SHORTEST) if last.length and last.offset + last.length == end else 0

    def append(self, kind: str, content: Mapping[str, Any]) -> int:
        """Writes a record (``content`` as for ``encode``); returns its number. From then on no SIGKILL loses it.

        A write that fails leaves the file as it was; a later one may succeed.
        """
        with self._lock:
            if self.closed:
                raise ValueError(f"{self.path}: the journal is closed")
            line = encode(self.last_seq + 1, kind, content)
            try:
                self._cut()
                # Before the write: when a signal's handler raises right after it, the number is not used again.
                self.last_seq += 1
                self._write(line)
            except OSError as error:
                raise from_os_error(error, self.path) from error
            self._unsynced = True
            return self.last_seq

    def _write(self, line: bytes) -> None:
        end = os.lseek(self._descriptor, 0, os.SEEK_END)
        try:
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._cut_at = end
            with suppress(OSError):
                self._cut()
            raise

    def _cut(self) -> None:
        """Takes a half-written line away; where that is refused it is tried again before the next write."""
        if self._cut_at is not None:
            os.ftruncate(self._descriptor, self._cut_at)
            self._cut_at = None

    def sync(self) -> None:
        """Returns when all that was appended so far is safe from a power loss; appending goes on meanwhile."""
        # A lock of its own, so that nobody finds nothing to do while another thread has yet to succeed.
        with self._sync_lock:
            if not self._unsynced or self._descriptor < 0:
                return
            self._unsynced = False
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                self._unsynced = True
                raise from_os_error(error, self.path) from error

    @property
    def closed(self) -> bool:
        """Whether its owner has let go of it, and with it of the run's folder."""
        return self._descriptor < 0

    def close(self) -> None:
        """Syncs and closes; a second time does nothing."""
        try:
            self.sync()
        finally:
            with self._sync_lock, self._lock:
                descriptor, self._descriptor = self._descriptor, -1
                # What there is to fail has failed in the sync.
                with suppress(OSError):
                    os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Reader:
    """Follows a journal that another thread or process appends to. ``damage``: the bytes that were passed over."""

    def __init__(self, path: Path) -> None:
        self.damage: list[Damage] = []
        # Always behind a newline: the tail that a writer may cut off, or mend, has not been read.
        self.offset = 0
        self._path = path

    def read(self) -> list[Entry]:
        """The whole entries since the last call, of a few MB at most: call until there are none.

        An unfinished last line is left for the next call; a file that is not there yet holds nothing. Raises
        ``StateDirError`` for one that cannot be read.
        """
        try:
            with self._path.open("rb") as stream:
                while lines := self._lines(stream):
                    entries, damage = scan(lines, self.offset)
                    self.offset += len(lines)
                    join_damage(self.damage, damage)
                    if entries:
                        return entries
        except FileNotFoundError:
            pass
        except OSError as error:
            raise from_os_error(error, self._path) from error
        return []

    def size(self) -> int:
        """Bytes that the file has now; none where it is not there yet. Raises ``StateDirError`` as ``read``."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise from_os_error(error, self._path) from error

    def _lines(self, stream: BinaryIO) -> bytes:
        """Some MB of whole lines, or one that is longer."""
        stream.seek(self.offset)
        parts: list[bytes] = []
        while part := stream.read(READ_BYTES):
            if end := part.rfind(b"\n") + 1:
                return b"".join([*parts, part[:end]])
            parts.append(part)
        return b""


def _sync_folder(folder: Path) -> None:
    """Makes a new file's name outlive a power loss, where the file system does such a thing."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES):
            raise
