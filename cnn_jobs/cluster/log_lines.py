"""The log of one pod, each line once: an answer begins anew, and what an earlier one had is passed over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime

# RFC 3339 with as many digits of a second as there are: "2026-11-25T14:00:00.12Z text".
_STAMPED = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ?(.*)", flags=re.DOTALL)
Stamp = tuple[int, int]


class LineFilter:
    """Takes the log, whose lines carry their times, from its beginning any number of times; gives each line once.

    Lines are passed over by their number. Where the log does not begin as it did, because the node has rotated it, by
    their times, up to the latest that was given.
    """

    def __init__(self) -> None:
        self._first = b""
        self._given = 0
        self._latest: Stamp = (0, 0)

    def read(self, pieces: Iterable[bytes], *, whole: bool) -> Iterator[str]:
        """The new lines of one answer. A last line without its end counts only if ``whole``: there is no more of it.

        Whatever ``pieces`` raises comes through, after the lines before it.
        """
        position, rotated = 0, False
        for line in _lines(pieces, whole=whole):
            if position == 0:
                rotated = bool(self._given) and line != self._first
                if rotated:
                    self._given = 0
                self._first = line
            position += 1
            stamp, text = _parts(line)
            # Without a time it is the node's word that the log is gone with its container.
            if rotated and (stamp is None or stamp <= self._latest):
                self._given = position
                continue
            if position <= self._given:
                continue
            rotated = False
            self._given = position
            self._latest = max(self._latest, stamp or self._latest)
            yield text


def _lines(pieces: Iterable[bytes], *, whole: bool) -> Iterator[bytes]:
    left = b""
    for piece in pieces:
        *lines, left = (left + piece).split(b"\n")
        yield from lines
    if left and whole:
        yield left


def _parts(line: bytes) -> tuple[Stamp | None, str]:
    """The time, in whole seconds and nanoseconds, and the text; no time of what is a word of the node's own."""
    found = _STAMPED.fullmatch(line)
    if not found:
        return None, line.decode(errors="replace")
    zone = found[3].decode().replace("Z", "+00:00")
    seconds = datetime.fromisoformat(found[1].decode() + zone).timestamp()
    return (int(seconds), int((found[2] or b"0").ljust(9, b"0"))), found[4].decode(errors="replace")
