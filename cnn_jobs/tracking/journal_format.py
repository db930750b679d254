"""A journal's records in bytes: one JSON line for each thing told, and what is still whole in a damaged file.

A line ends in the CRC-32 of what stands before it. Where a record begins and ends is found by marks that occur nowhere
else in one, not by line ends: a torn, flipped or overwritten record, or newline, takes no neighbour with it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_BEGIN, _END, _END_BYTES = b'{"seq":', b',"crc32":"', len(b',"crc32":"00000000"}')
# In JSON text the same characters can only be a key, for in a string the quotes are escaped. Such a key of the content
# is written with an escape: the same key to every JSON parser, but no mark.
_NO_BEGIN, _NO_END = ('{"seq":', '{"\\u0073eq":'), (',"crc32":', ',"\\u0063rc32":')
_to_json = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True)
class Entry:
    """One thing told. ``seq`` is 1 or more and rises from entry to entry, not always by 1."""

    seq: int
    kind: str
    content: dict[str, Any]


@dataclass(frozen=True)
class Damage:
    """Bytes of the file, from ``offset`` up to ``offset + length``, that hold no whole record."""

    offset: int
    length: int

    def __str__(self) -> str:
        if self.length == 1:
            return f"1 byte at offset {self.offset} holds no whole record"
        return f"{self.length} bytes at offset {self.offset} hold no whole record"


def encode(seq: int, kind: str, content: Mapping[str, Any]) -> bytes:
    """The line of a record. ``content``: JSON values, also NaN and the infinities; floats come back bit for bit.

    Raises ``TypeError`` or ``ValueError`` for what JSON cannot say.
    """
    text = _to_json(dict(content)).replace(*_NO_BEGIN).replace(*_NO_END)
    body = f'{{"seq":{seq},"kind":{_to_json(kind)},"content":{text}'.encode("ascii")
    return body + b',"crc32":"%08x"}\n' % zlib.crc32(body)


# A damaged region has held at most as many records as fit in of the shortest.
SHORTEST = len(encode(1, "", {}))


def scan(data: bytes, base_offset: int = 0) -> tuple[list[Entry], list[Damage]]:
    """Every whole record, in order, and the bytes between them; ``base_offset``: where ``data`` begins in the file.

    A newline belongs to the record before it; at the very end it may be missing. Takes time linear in ``data``,
    whatever it holds.
    """
    entries: list[Entry] = []
    damage: list[Damage] = []
    reached = 0
    for begin, end, entry in _whole_records(data):
        if begin > reached:
            damage.append(Damage(base_offset + reached, begin - reached))
        entries.append(entry)
        reached = end + (data[end : end + 1] == b"\n")
    if reached < len(data):
        damage.append(Damage(base_offset + reached, len(data) - reached))
    return entries, damage


def _whole_records(data: bytes) -> Iterator[tuple[int, int, Entry]]:
    """Begin, end (without the newline) and entry. A whole record reaches to the first end mark, and over no begin."""
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
    except (ValueError, KeyError, RecursionError):  # whole, but not of this writer
        return None
    # Not as patterns of a ``match``: that takes longer than all the rest.
    ours = isinstance(seq, int) and isinstance(kind, str) and isinstance(content, dict)
    return Entry(seq, kind, content) if ours else None


def join_damage(damage: list[Damage], more: list[Damage]) -> None:
    """Adds what comes next in the file; adjacent regions become one."""
    for each in more:
        if damage and damage[-1].offset + damage[-1].length == each.offset:
            each = Damage(damage[-1].offset, damage.pop().length + each.length)
        damage.append(each)
