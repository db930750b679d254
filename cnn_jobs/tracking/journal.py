"""The append-only record of everything a run sends to MLflow: its format, its writer, and a reader that follows it.

A record is one JSON line that ends with the CRC-32 of what precedes it. Not newlines but marks that occur nowhere else
in a record delimit it: a torn, flipped or overwritten record or newline does not damage its neighbours.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from cnn_jobs.errors import from_os_error
from cnn_jobs.system.files import make_folder, sync_folder

READ_BYTES = 4 << 20

_BEGIN, _END, _END_BYTES = b'{"seq":', b',"crc32":"', len(b',"crc32":"00000000"}')
# In JSON text these characters can only be a key, because quotes within strings are escaped. In the content such a key
# is written with an escape: the same key to every JSON parser, but not a mark.
_NO_BEGIN, _NO_END = ('{"seq":', '{"\\u0073eq":'), (',"crc32":', ',"\\u0063rc32":')
_to_json = json.JSONEncoder(separators=(",", ":")).encode


# -- format ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One record. ``seq`` is at least 1 and rises from entry to entry, not always by 1."""

    seq: int
    kind: str
    content: dict[str, Any]


@dataclass(frozen=True)
class Damage:
    """Bytes of the file, from ``offset`` up to ``offset + length``, that hold no intact record."""

    offset: int
    length: int

    def __str__(self) -> str:
        if self.length == 1:
            return f"1 byte at offset {self.offset} holds no intact record"
        return f"{self.length} bytes at offset {self.offset} hold no intact record"


def encode(seq: int, kind: str, content: Mapping[str, Any]) -> bytes:
    """The line of a record. ``content``: JSON values, NaN and infinities included; floats are restored bit for bit.

    Raises ``TypeError`` or ``ValueError`` for what JSON cannot express.
    """
    text = _to_json(dict(content)).replace(*_NO_BEGIN).replace(*_NO_END)
    body = f'{{"seq":{seq},"kind":{_to_json(kind)},"content":{text}'.encode("ascii")
    return body + b',"crc32":"%08x"}\n' % zlib.crc32(body)


# A damaged region held at most as many records as fit of the shortest kind.
SHORTEST = len(encode(1, "", {}))


def scan(data: bytes, base_offset: int = 0) -> tuple[list[Entry], list[Damage]]:
    """Every intact record, in order, and the bytes between them; ``base_offset``: where ``data`` begins in the file.

    A newline belongs to the record before it and may be missing at the very end. Takes time linear in the size of
    ``data``, also if that is damaged.
    """
    entries: list[Entry] = []
    damage: list[Damage] = []
    reached = 0
    for begin, end, entry in _intact_records(data):
        if begin > reached:
            damage.append(Damage(base_offset + reached, begin - reached))
        entries.append(entry)
        reached = end + (data[end : end + 1] == b"\n")
    if reached < len(data):
        damage.append(Damage(base_offset + reached, len(data) - reached))
    return entries, damage


def _intact_records(data: bytes) -> Iterator[tuple[int, int, Entry]]:
    """Begin, end (without the newline) and entry. An intact record reaches to the first end mark, and over no begin."""
    begin = data.find(_BEGIN)
    while begin >= 0:
        following = data.find(_BEGIN, begin + 1)
        mark = data.find(_END, begin, following if following >= 0 else len(data))
        if mark >= 0 and (entry := _decode(data[begin : mark + _END_BYTES])):
            yield begin, mark + _END_BYTES, entry
        begin = following


def _decode(record: bytes) -> Entry | None:
    body = record[:-_END_BYTES]
    if record[-_END_BYTES:] != b',"crc32":"%08x"}' % zlib.crc32(body):
        return None
    try:
        fields = json.loads(record.decode("ascii"))
        seq, kind, content = fields["seq"], fields["kind"], fields["content"]
    except (ValueError, KeyError, RecursionError):  # intact, but not of this writer
        return None
    # Not as patterns of ``match``: that takes longer than all the rest.
    valid = isinstance(seq, int) and isinstance(kind, str) and isinstance(content, dict)
    return Entry(seq, kind, content) if valid else None


def join_damage(damage: list[Damage], more: list[Damage]) -> None:
    """Appends what follows in the file to ``damage``; adjacent regions become one."""
    for each in more:
        if damage and damage[-1].offset + damage[-1].length == each.offset:
            each = Damage(damage[-1].offset, damage.pop().length + each.length)
        damage.append(each)


# -- writer and reader -----------------------------------------------------------------------------------------------


class Journal:
    """The writer. One process at a time (the caller holds a lock), any number of threads.

    ``entries``: the intact ones at opening. ``damage``: what was not intact, and stays in the file as evidence.
    ``torn_bytes``: what was cut off at the end, where a write had not completed. ``last_seq``: the highest number used.
    What the disk refuses raises ``DiskFullError`` or ``StateDirError``.
    """

    def __init__(self, path: Path, *, after: int = 0) -> None:
        """Opens or creates the file. ``after``: the highest number acknowledged; a reused one would count as sent."""
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
                lost = self._read_and_repair()
                sync_folder(path.parent)
            except BaseException:
                os.close(self._descriptor)
                raise
        except OSError as error:
            raise from_os_error(error, path) from error
        self.last_seq = max(after, max((entry.seq for entry in self.entries), default=0) + lost)

    def _read_and_repair(self) -> int:
        """Fills ``entries`` and ``damage``, repairs the end; returns how many records are lost there at most."""
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
        """Writes a record (``content`` as for ``encode``) and returns its number. From then on it survives a SIGKILL.

        A write that fails leaves the file as it was; a later one may succeed.
        """
        with self._lock:
            if self.closed:
                raise ValueError(f"{self.path}: the journal is closed")
            line = encode(self.last_seq + 1, kind, content)
            try:
                self._cut()
                # Before the write: if a signal handler raises right after it, the number is not used again.
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
        """Removes a half-written line; where that fails, it is tried again before the next write."""
        if self._cut_at is not None:
            os.ftruncate(self._descriptor, self._cut_at)
            self._cut_at = None

    def sync(self) -> None:
        """Makes everything appended so far survive a power loss; appending continues meanwhile."""
        # A separate lock, so that no thread returns early while another's sync has yet to succeed.
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
        """Whether its owner has released it, and with it the run's folder."""
        return self._descriptor < 0

    def close(self) -> None:
        """Syncs and closes; a second call does nothing."""
        try:
            self.sync()
        finally:
            with self._sync_lock, self._lock:
                descriptor, self._descriptor = self._descriptor, -1
                # What can fail has failed in the sync.
                with suppress(OSError):
                    os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Reader:
    """Follows a journal that another thread or process appends to. ``damage``: the bytes that were skipped."""

    def __init__(self, path: Path) -> None:
        self.damage: list[Damage] = []
        # Always behind a newline: the tail, which a writer may cut off or repair, has not been read.
        self.offset = 0
        self._path = path

    def read(self) -> list[Entry]:
        """The intact entries since the last call, of a few MB at most: call it until there are none.

        An unfinished last line is left for the next call; a missing file has no entries. Raises ``StateDirError`` where
        the file cannot be read.
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
        """The file's size in bytes, 0 where it is missing. Raises ``StateDirError`` as ``read``."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise from_os_error(error, self._path) from error

    def _lines(self, stream: BinaryIO) -> bytes:
        """A few MB of whole lines, or one line that is longer."""
        stream.seek(self.offset)
        parts: list[bytes] = []
        while part := stream.read(READ_BYTES):
            if end := part.rfind(b"\n") + 1:
                return b"".join([*parts, part[:end]])
            parts.append(part)
        return b""
