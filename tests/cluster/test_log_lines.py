"""Each line of a log once, however often its answer begins anew."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn_jobs.cluster.logs import LineFilter

LINES = [
    b"2026-11-25T14:00:00.9Z one",
    b"2026-11-25T14:00:01.123456789Z two",
    b"2026-11-25T14:00:01.123456789Z two",  # the same text at the same time: another line
    b"2026-11-25T14:00:01Z out of order, as stdout and stderr may be",
    b"2026-11-25T14:00:01.5Z ",
    b"2026-11-25T15:00:02.000000001+01:00 \xc3\xa9 and \xff",
    b"failed to watch the log: too many open files",
]
TEXTS = ["one", "two", "two", "out of order, as stdout and stderr may be", "", "é and �", LINES[-1].decode()]
LOG = b"".join(line + b"\n" for line in LINES)


def broken(data: bytes, *, size: int = 7) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
    raise ConnectionError("broke off")


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_lines_come_without_their_times(size: int) -> None:
    pieces = [LOG[start : start + size] for start in range(0, len(LOG), size)]
    assert list(LineFilter().read(pieces, whole=True)) == TEXTS


@given(st.lists(st.integers(0, len(LOG)), max_size=6))
def test_answers_that_break_off_anywhere_lose_and_double_nothing(cuts: list[int]) -> None:
    lines = LineFilter()
    found: list[str] = []
    for cut in cuts:
        with pytest.raises(ConnectionError):
            found.extend(lines.read(broken(LOG[:cut]), whole=False))
    assert found + list(lines.read([LOG], whole=True)) == TEXTS


def test_half_a_line_is_none_until_no_more_comes() -> None:
    lines = LineFilter()
    assert list(lines.read([LOG[:20]], whole=False)) == []
    assert list(lines.read([LOG[:-1]], whole=False)) == TEXTS[:-1]
    assert list(lines.read([LOG[:-1]], whole=True)) == TEXTS[-1:]


def test_the_nodes_word_that_a_log_is_gone_is_no_line_of_it() -> None:
    lines = LineFilter()
    assert list(lines.read([LOG], whole=False)) == TEXTS
    assert list(lines.read([b"unable to retrieve container logs for containerd://20b5"], whole=True)) == []
    assert list(lines.read([LOG, b"2026-11-25T14:00:09Z more\n"], whole=True)) == ["more"]


def test_a_log_that_the_node_has_rotated_goes_on_after_the_last_time() -> None:
    lines = LineFilter()
    assert list(lines.read([LOG], whole=False)) == TEXTS
    fresh = b"2026-11-25T14:00:02.5Z three\n"
    assert list(lines.read([b"\n".join(LINES[4:6]), b"\n", fresh], whole=False)) == ["three"]
    more = fresh + b"2026-11-25T14:00:03Z four\n"
    assert list(lines.read([b"\n".join(LINES[4:6]), b"\n", more], whole=True)) == ["four"]
    assert list(lines.read([b"2026-11-25T14:00:04Z five\n"], whole=True)) == ["five"]
