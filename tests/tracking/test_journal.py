"""The journal: its format, damaged files, disks that refuse, and readers that follow it."""

import errno
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn_jobs.errors import CnnJobsError, DiskError, DiskFullError, StateDirError
from cnn_jobs.tracking import journal as module
from cnn_jobs.tracking.journal import Damage, Entry, Journal, Reader, encode, scan

# With texts that look like the ends of a record.
RECORDS: list[tuple[str, dict[str, Any]]] = [
    ("attempt", {"id": "a1", "n": 1}),
    ("metrics", {"v": {"train/loss": 0.1 + 0.2}, "step": 7}),
    ("tags", {"t": ',"crc32":"deadbeef"}\n{"seq":3,'}),
    ("tags", {"seq": 4, "crc32": "deadbeef"}),
    ("metrics", {"v": -0.0, "crc32": "00000000"}),
    ("ending", {"status": "FINISHED"}),
]
ENTRIES = [Entry(number, kind, content) for number, (kind, content) in enumerate(RECORDS, 1)]
LINES = [encode(each.seq, each.kind, each.content) for each in ENTRIES]
DATA = b"".join(LINES)
# Where each line begins; the last is the end of the data.
EDGES = list(itertools.accumulate(map(len, LINES), initial=0))


def read_all(path: Path) -> list[Entry]:
    reader, entries = Reader(path), []
    while more := reader.read():
        entries += more
    return entries


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


# -- one record ------------------------------------------------------------------------------------------------------


def test_line_is_json_that_ends_with_its_checksum() -> None:
    line = encode(17, "metrics", {"step": 3, "loss": 0.5})
    assert line == b'{"seq":17,"kind":"metrics","content":{"step":3,"loss":0.5},"crc32":"6702e711"}\n'
    body, _, end = line.partition(b',"crc32":')
    assert zlib.crc32(body) == 0x6702E711
    assert end == b'"6702e711"}\n'


TEXTS = st.one_of(
    st.text(), st.sampled_from(["seq", "crc32", '{"seq":', ',"crc32":"deadbeef"}', '"crc32', "{", ",", "\n"])
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)
CONTENTS = st.dictionaries(TEXTS, VALUES, max_size=4)


@given(st.integers(1, 2**60), TEXTS, CONTENTS)
def test_every_record_is_read_back_unchanged(seq: int, kind: str, content: dict[str, Any]) -> None:
    line = encode(seq, kind, content)
    entries, damage = scan(line)
    # As text, so that nan equals nan, and -0.0 not 0.0.
    assert repr(entries) == repr([Entry(seq, kind, content)])
    assert damage == []
    assert line.isascii()
    assert line.find(b"\n") == len(line) - 1
    assert json.loads(line)["seq"] == seq
    # The search in damaged files relies on it.
    assert line.count(b'{"seq":') == line.count(b',"crc32":"') == 1


@given(st.floats())
def test_every_float_is_read_back_bit_for_bit(value: float) -> None:
    (entry,), _ = scan(encode(1, "metrics", {"value": value}))
    assert repr(entry.content["value"]) == repr(value)


def test_values_that_other_formats_lose_are_read_back(path: Path) -> None:
    content: dict[str, Any] = {
        "floats": [float("nan"), float("inf"), float("-inf"), -0.0, 0.1 + 0.2, 5e-324, 1.7976931348623157e308],
        "integers": [2**53 + 1, -(2**63), 0],
        "texts": ["\u00e4\u4e16\U0001f600", "\ud800", "line\nend\r\n\0", '"\\"', ""],
        "others": [None, True, {}, []],
    }
    with Journal(path) as journal:
        journal.append("metrics", content)
    (entry,) = read_all(path)
    assert repr(entry.content) == repr(content)


def test_content_that_json_cannot_express_is_refused(path: Path) -> None:
    with Journal(path) as journal:
        with pytest.raises(TypeError, match="not JSON serializable"):
            journal.append("tags", {"path": path})
        circle: list[Any] = []
        circle.append(circle)
        with pytest.raises(ValueError, match="Circular"):
            journal.append("tags", {"circle": circle})
        journal.append("tags", {"good": 1})
    assert read_all(path) == [Entry(1, "tags", {"good": 1})]


# -- damaged files ---------------------------------------------------------------------------------------------------


def test_file_cut_at_any_byte_keeps_every_intact_record_and_can_be_continued(path: Path) -> None:
    for size in range(len(DATA) + 1):
        # The newline is not part of the record.
        count = sum(edge - 1 <= size for edge in EDGES[1:])
        with Journal(write(path, DATA[:size])) as journal:
            assert journal.entries == ENTRIES[:count]
            assert journal.damage == []
            assert journal.torn_bytes == max(0, size - EDGES[count])
            assert journal.append("new", {"size": size}) == journal.last_seq == count + 1
        assert path.read_bytes() == DATA[: EDGES[count]] + encode(count + 1, "new", {"size": size})
        assert read_all(path) == [*ENTRIES[:count], Entry(count + 1, "new", {"size": size})]


def flips(*, bits: int) -> Iterator[tuple[int, bytes]]:
    for position in range(len(DATA)):
        for bit in range(bits):
            flipped = bytearray(DATA)
            flipped[position] ^= 1 << ((position + bit) % 8)
            yield position, bytes(flipped)


def line_of(position: int) -> int:
    return next(number for number, edge in enumerate(EDGES) if edge > position) - 1


def intact_after_flip(position: int) -> list[Entry]:
    """The entries that a flipped byte there leaves intact: all for a newline, else all but one."""
    hit = line_of(position)
    return [each for number, each in enumerate(ENTRIES) if number != hit or position == EDGES[hit + 1] - 1]


def test_flipped_bit_damages_only_its_own_record() -> None:
    for position, data in flips(bits=8):
        entries, damage = scan(data, base_offset=1000)
        hit = line_of(position)
        assert entries == intact_after_flip(position)
        if position == EDGES[hit + 1] - 1:
            assert damage == [Damage(1000 + position, 1)]
        else:
            assert damage == [Damage(1000 + EDGES[hit], len(LINES[hit]))]


def test_flipped_byte_is_reported_and_new_records_get_new_numbers(path: Path) -> None:
    for position, data in flips(bits=1):
        intact = intact_after_flip(position)
        with Journal(write(path, data)) as journal:
            assert journal.entries == intact
            if position == len(DATA) - 1:
                assert (journal.torn_bytes, journal.damage) == (1, [])
            else:
                assert journal.torn_bytes == 0
                assert [each.offset <= position < each.offset + each.length for each in journal.damage] == [True]
            number = journal.append("new", {"position": position})
            assert number > len(ENTRIES)
        if position < len(DATA) - 1:
            assert path.read_bytes()[: len(data)] == data  # the damaged bytes are kept as evidence
        assert read_all(path) == [*intact, Entry(number, "new", {"position": position})]


@pytest.mark.parametrize("count", range(1, len(LINES) + 1))
@pytest.mark.parametrize("kind", ["each flipped", "zeros", "no newlines"])
def test_numbers_of_damaged_records_at_the_end_are_not_reused(path: Path, count: int, kind: str) -> None:
    end = DATA[EDGES[-1 - count] :]
    damaged = {
        "each flipped": end.replace(b'"kind"', b'"kInd"'),
        "zeros": bytes(len(end) - 1) + b"\n",
        "no newlines": end.replace(b"\n", b"?").replace(b'"kind"', b'"kInd"') + b"\n",
    }[kind]
    with Journal(write(path, DATA[: EDGES[-1 - count]] + damaged)) as journal:
        assert journal.entries == ENTRIES[: len(ENTRIES) - count]
        assert journal.damage == [Damage(EDGES[-1 - count], len(damaged))]
        assert journal.last_seq >= len(ENTRIES)
        assert journal.append("new", {}) == journal.last_seq > len(ENTRIES)


@pytest.mark.parametrize("damaged", [b"x" + encode(7, "tags", {"a": 1})[1:], b"x\n", b"\n"])
def test_short_damaged_line_at_the_end_counts_as_one_record(path: Path, damaged: bytes) -> None:
    with Journal(write(path, DATA + damaged)) as journal:
        assert journal.append("new", {}) == 8
    with Journal(path) as journal:
        assert journal.append("new", {}) == 9


@pytest.mark.parametrize(
    ("tail", "intact", "torn", "damage"),
    [
        (LINES[4][:-1], 5, 0, []),
        (LINES[4][:-1] + b"\x8a", 5, 1, []),
        (LINES[4][:-1] + b"\x00" + LINES[5][:-2], 5, len(LINES[5]) - 1, []),
        (LINES[4][:-1] + b"\x00" + LINES[5][:-1], 6, 0, [Damage(EDGES[5] - 1, 1)]),
        (b"?" + LINES[4][:-1], 5, 0, [Damage(EDGES[4], 1)]),
        (b"?\n" + LINES[4][:-2], 4, len(LINES[4]) - 2, [Damage(EDGES[4], 2)]),
        (bytes(4096), 4, 4096, []),
        (b"\n", 4, 0, [Damage(EDGES[4], 1)]),
        (LINES[4][:-1] + b"\r\n", 5, 0, [Damage(EDGES[5] - 1, 2)]),
    ],
)
def test_end_of_a_file_is_repaired(path: Path, tail: bytes, intact: int, torn: int, damage: list[Damage]) -> None:
    data = DATA[: EDGES[4]] + tail
    with Journal(write(path, data)) as journal:
        assert journal.entries == ENTRIES[:intact]
        assert (journal.torn_bytes, journal.damage) == (torn, damage)
        repaired = path.read_bytes()
        number = journal.append("new", {})
    assert repaired.endswith(b"\n")
    assert repaired.removesuffix(b"\n") == data[: len(data) - torn].removesuffix(b"\n")
    assert read_all(path) == [*ENTRIES[:intact], Entry(number, "new", {})]
    with Journal(path) as journal:
        assert (journal.torn_bytes, journal.damage) == (0, damage)


def test_record_inside_the_content_of_another_is_not_a_record() -> None:
    inner = json.loads(encode(99, "ending", {"status": "FAILED"}))
    line = encode(1, "tags", {"x": inner, "y": [inner], "z": encode(98, "tags", {}).decode()})
    assert scan(line)[0] == [Entry(1, "tags", json.loads(line)["content"])]
    for position in range(len(line) - 1):
        flipped = line[:position] + bytes([line[position] ^ 1]) + line[position + 1 :]
        assert scan(flipped) == ([], [Damage(0, len(line))])


@pytest.mark.parametrize(
    "body",
    [
        b'{"seq":"1","kind":"tags","content":{}',
        b'{"seq":1,"kind":2,"content":{}',
        b'{"seq":1,"kind":"tags","content":[]',
        b'{"seq":1,"kind":"tags"',
        b'{"seq":1,"kind":"tags","content":{',
        b'{"seq":1,"kind":"\xff","content":{}',
        b'{"seq":' + b"9" * 5000 + b',"kind":"tags","content":{}',
        b'{"seq":1,"kind":"tags","content":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=["text seq", "number kind", "list content", "no content", "no json", "no ascii", "huge", "deep"],
)
def test_foreign_line_with_a_valid_checksum_is_damage(body: bytes) -> None:
    line = body + b',"crc32":"%08x"}\n' % zlib.crc32(body)
    assert scan(line + LINES[0]) == ([ENTRIES[0]], [Damage(0, len(line))])


PIECES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([*LINES, *(line[:-1] for line in LINES), *(line[:30] for line in LINES)]),
    st.sampled_from([line[20:] for line in LINES]),
    st.sampled_from([b'{"seq":', b',"crc32":"', b"\n", b'{"seq":1', b'00000000"}', bytes(60)]),
)


@given(st.lists(PIECES, max_size=20), st.integers(0, 2**40))
def test_every_intact_record_among_any_bytes_is_found_and_the_rest_reported(pieces: list[bytes], base: int) -> None:
    data = b"".join(pieces)
    entries, damage = scan(data, base)
    intact = [
        ENTRIES[LINES.index(piece.rstrip(b"\n") + b"\n")] for piece in pieces if piece.rstrip(b"\n") + b"\n" in LINES
    ]
    # Two adjacent halves also make an intact record; nothing else is ever taken for one.
    remaining = iter(entries)
    assert all(each in remaining for each in intact)
    assert all(each in ENTRIES for each in entries)
    kept, reached = b"", 0
    for each in damage:
        assert each.length > 0
        kept += data[reached : each.offset - base]
        reached = each.offset - base + each.length
    kept += data[reached:]
    assert kept.replace(b"\n", b"") == b"".join(LINES[each.seq - 1][:-1] for each in entries)
    assert kept.count(b"\n") <= len(entries)
    assert all(one.offset + one.length < other.offset for one, other in itertools.pairwise(damage))


@given(st.lists(PIECES, max_size=20), st.integers(1, 300))
def test_read_size_does_not_matter(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], size: int) -> None:
    data = b"".join(pieces)
    path = write(tmp_path_factory.getbasetemp() / "pieces.jsonl", data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "READ_BYTES", size)
        reader, entries = Reader(path), []
        while more := reader.read():
            entries += more
    assert (entries, reader.damage) == scan(data[: data.rfind(b"\n") + 1])


@pytest.mark.parametrize("piece", [b'{"seq":', b'{"seq":1,"crc32":"', b',"crc32":"00000000"}', b"\0", b"\n", b"{"])
def test_garbage_takes_linear_time(piece: bytes) -> None:
    data = piece * (3_000_000 // len(piece))
    started = time.perf_counter()
    assert scan(b'{"seq":' + data) == ([], [Damage(0, len(data) + 7)])
    # 0.3 s at most; quadratic time would be minutes.
    assert time.perf_counter() - started < 10


# -- the writer ------------------------------------------------------------------------------------------------------


def test_numbers_continue_after_reopening(path: Path) -> None:
    path = path.parent / "deep" / "folder" / path.name
    with Journal(path) as journal:
        assert (journal.entries, journal.last_seq) == ([], 0)
        assert [journal.append(kind, content) for kind, content in RECORDS[:4]] == [1, 2, 3, 4]
        assert journal.entries == []
    with Journal(path) as journal:
        assert (journal.entries, journal.last_seq) == (ENTRIES[:4], 4)
        assert [journal.append(kind, content) for kind, content in RECORDS[4:]] == [5, 6]
    assert path.read_bytes() == DATA


def test_numbers_start_after_the_highest_acknowledged_one(path: Path) -> None:
    with Journal(write(path, DATA), after=100) as journal:
        assert journal.last_seq == 100
        assert journal.append("new", {}) == 101
    with Journal(path, after=50) as journal:
        assert journal.append("new", {}) == 102
    with Journal(path.with_name("lost"), after=7) as journal:
        assert journal.append("new", {}) == 8


def test_exception_after_a_write_does_not_reuse_its_number(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def interrupted(descriptor: int, data: bytes) -> int:
        real(descriptor, data)
        raise KeyboardInterrupt

    with Journal(path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", interrupted)
            with pytest.raises(KeyboardInterrupt):
                journal.append("tags", {"first": 1})
        journal.append("tags", {"second": 2})
    assert read_all(path) == [Entry(1, "tags", {"first": 1}), Entry(2, "tags", {"second": 2})]


def test_many_threads_append_concurrently(path: Path) -> None:
    numbers: dict[int, list[int]] = {}
    done = threading.Event()

    def append(thread: int) -> None:
        numbers[thread] = [journal.append("metrics", {"thread": thread, "i": i, "x": "x" * i}) for i in range(200)]

    def sync() -> None:
        while not done.wait(0.001):
            journal.sync()

    with Journal(path) as journal:
        threads = [threading.Thread(target=append, args=(number,)) for number in range(8)]
        syncer = threading.Thread(target=sync)
        for thread in (*threads, syncer):
            thread.start()
        for thread in threads:
            thread.join()
        done.set()
        syncer.join()
    entries = read_all(path)
    assert [each.seq for each in entries] == list(range(1, 1601))
    for number, seqs in numbers.items():
        own = [each for each in entries if each.content["thread"] == number]
        assert [each.seq for each in own] == seqs
        assert [each.content["i"] for each in own] == list(range(200))


APPENDER = """
import os, sys
from pathlib import Path
from cnn_jobs.tracking.journal import Journal
journal = Journal(Path(sys.argv[1]))
while True:
    number = journal.append("metrics", {"double": 2 * (journal.last_seq + 1), "x": "x" * (journal.last_seq % 500)})
    os.write(1, b"%d\\n" % number)
"""


def test_records_of_a_killed_process_are_kept(path: Path) -> None:
    last = 0
    for count in (1, 100, 3000):
        command = [sys.executable, "-c", APPENDER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            reported = [int(process.stdout.readline()) for _ in range(count)]
            process.kill()
            # Its last line may be torn.
            reported += [int(line) for line in process.stdout if line.endswith(b"\n")]
        assert process.returncode == -signal.SIGKILL
        assert reported[0] == last + 1
        with Journal(path) as journal:
            assert (journal.damage, journal.torn_bytes) == ([], 0)
            assert [each.seq for each in journal.entries] == list(range(1, journal.last_seq + 1))
            assert all(each.content["double"] == 2 * each.seq for each in journal.entries)
            assert journal.last_seq >= reported[-1]
            last = journal.last_seq


# -- disks that refuse -----------------------------------------------------------------------------------------------

Write = Callable[[int, bytes], int]


def failing(bytes_written: int, number: int | None, real: Write) -> Write:
    """A write of only some bytes, which then raises the error ``number`` or, for ``None``, returns how many."""

    def write(descriptor: int, data: bytes) -> int:
        done = real(descriptor, data[:bytes_written])
        if number:
            raise OSError(number, os.strerror(number))
        return done

    return write


@pytest.mark.parametrize("bytes_written", [0, 1, 20, -1])
@pytest.mark.parametrize(
    ("number", "kind"),
    [(None, DiskFullError), (errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EIO, DiskError)],
)
def test_failed_append_leaves_the_file_unchanged(
    path: Path, monkeypatch: pytest.MonkeyPatch, bytes_written: int, number: int | None, kind: type[CnnJobsError]
) -> None:
    with Journal(write(path, DATA)) as journal:
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", failing(bytes_written, number, os.write))
                with pytest.raises(kind, match=r"journal\.jsonl: ") as caught:
                    journal.append("metrics", {"too": "much"})
            assert caught.value.exit_code == 1
            assert path.read_bytes() == DATA
        seq = journal.append("metrics", {"room": "again"})
        assert seq > len(ENTRIES)
    assert read_all(path) == [*ENTRIES, Entry(seq, "metrics", {"room": "again"})]


@pytest.mark.parametrize("bytes_written", [20, -1])
def test_half_a_line_that_cannot_be_removed_at_once_is_removed_later(
    path: Path, monkeypatch: pytest.MonkeyPatch, bytes_written: int
) -> None:
    def refuse(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def fail(journal: Journal) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", failing(bytes_written, None, os.write))
            patch.setattr(os, "ftruncate", refuse)
            with pytest.raises(DiskFullError):
                journal.append("metrics", {"too": "much"})
            with pytest.raises(DiskError):  # the line would begin inside the half one
                journal.append("metrics", {"too": "much"})

    with Journal(write(path, DATA)) as journal:
        fail(journal)
        assert path.stat().st_size > len(DATA)
        first = journal.append("metrics", {"room": "again"})
        fail(journal)
    with Journal(path) as journal:
        assert journal.damage == []
        second = journal.append("metrics", {"room": "again"})
    seqs = [each.seq for each in read_all(path)]
    assert seqs == sorted(set(seqs))
    assert {*range(1, 7), first, second} <= set(seqs)
    # A line that lacks only its newline is kept: a failed record may be there, but with a number of its own.
    assert len(seqs) == 8 + (bytes_written == -1)


def test_full_disk(small_disk: Path) -> None:
    path, other = small_disk / "run" / "journal.jsonl", small_disk / "other"
    other.write_bytes(bytes(8192))
    seqs: list[int] = []
    with Journal(path) as journal:
        for _ in range(2):
            with pytest.raises(DiskFullError, match=r"journal\.jsonl: no space left"):  # noqa: PT012
                while True:
                    seqs.append(journal.append("metrics", {"x": "x" * 150}))
            assert [each.seq for each in read_all(path)] == seqs
            assert path.read_bytes().endswith(b"}\n")
            other.unlink(missing_ok=True)
        journal.sync()
    assert len(seqs) > 200
    with Journal(path) as journal:
        assert (journal.damage, journal.torn_bytes, len(journal.entries)) == ([], 0, len(seqs))


def test_folder_in_place_of_the_file_and_file_in_place_of_the_folder(path: Path) -> None:
    path.mkdir()
    write(path.parent / "file", b"in the way")
    for place in (path, path.parent / "file" / "journal.jsonl"):
        with pytest.raises(StateDirError) as caught:
            Journal(place)
        assert caught.value.exit_code == 2
        with pytest.raises(StateDirError):
            Reader(place).read()


# -- syncing and closing ---------------------------------------------------------------------------------------------


class Syncs:
    """Replaces ``os.fsync``: ``done`` lists what was synced by kind, ``errors`` has the errors to raise instead."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.errors: dict[str, int] = {}
        self._real = os.fsync

    def __call__(self, descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        if number := self.errors.get(kind):
            raise OSError(number, os.strerror(number))
        self._real(descriptor)
        self.done.append(kind)


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    syncs = Syncs()
    monkeypatch.setattr(os, "fsync", syncs)
    return syncs


def test_sync_reaches_the_disk_only_after_changes(path: Path, syncs: Syncs) -> None:
    journal = Journal(path)
    assert syncs.done == ["folder"]
    journal.sync()  # a killed process may have appended before
    assert syncs.done == ["folder", "file"]
    del syncs.done[:]
    journal.sync()
    assert syncs.done == []
    journal.append("tags", {})
    journal.sync()
    journal.sync()
    assert syncs.done == ["file"]
    journal.append("tags", {})
    journal.close()
    assert syncs.done == ["file", "file"]
    journal.close()
    journal.sync()
    assert syncs.done == ["file", "file"]


def test_failed_sync_is_repeated(path: Path, syncs: Syncs) -> None:
    with Journal(path) as journal:
        journal.append("tags", {})
        for number, kind in ((errno.EIO, DiskError), (errno.ENOSPC, DiskFullError)):
            syncs.errors = {"file": number}
            with pytest.raises(kind, match=r"journal\.jsonl: "):
                journal.sync()
        syncs.errors, syncs.done = {}, []
        journal.sync()
        assert syncs.done == ["file"]


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_failed_open_or_close_leaves_no_open_descriptor(path: Path, syncs: Syncs) -> None:
    open_before = open_descriptors()
    syncs.errors = {"folder": errno.EIO}
    with pytest.raises(DiskError):
        Journal(path)
    assert open_descriptors() == open_before
    syncs.errors = {"file": errno.EIO}
    journal = Journal(path)
    with pytest.raises(DiskError):
        journal.close()
    journal.close()
    assert open_descriptors() == open_before


def test_slow_sync_blocks_no_append_but_a_second_sync(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path)
    journal.append(*RECORDS[0])
    begun, finish, second_done = threading.Event(), threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        begun.set()
        assert finish.wait(30)

    def second() -> None:
        journal.sync()
        second_done.set()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", slow)
        threads = [threading.Thread(target=journal.sync), threading.Thread(target=second)]
        threads[0].start()
        assert begun.wait(30)
        threads[1].start()
        # Nothing is new, but the first record is not on the disk yet.
        assert not second_done.wait(0.1)
        assert journal.append(*RECORDS[1]) == 2
        finish.set()
        for thread in threads:
            thread.join()
    assert second_done.is_set()
    journal.close()
    assert read_all(path) == ENTRIES[:2]


def test_closed_journal_refuses_records(path: Path) -> None:
    with Journal(path) as journal:
        journal.append(*RECORDS[0])
    with pytest.raises(ValueError, match=r"journal\.jsonl: the journal is closed"):
        journal.append(*RECORDS[1])
    assert read_all(path) == ENTRIES[:1]


# -- the reader ------------------------------------------------------------------------------------------------------


def test_reader_follows_a_writer(path: Path) -> None:
    reader = Reader(path)
    assert reader.read() == []  # not there yet
    with Journal(path) as journal:
        assert reader.read() == []
        for entry in ENTRIES:
            journal.append(entry.kind, entry.content)
            assert reader.read() == [entry]
            assert reader.read() == []
    assert Reader(path).read() == ENTRIES


def test_unfinished_line_is_read_once_it_is_complete(path: Path) -> None:
    reader, entries = Reader(path), []
    for size in range(len(DATA) + 1):
        write(path, DATA[:size])
        entries += reader.read()
        assert entries == ENTRIES[: sum(edge <= size for edge in EDGES[1:])]
    assert reader.damage == []


def test_damaged_lines_are_skipped_and_listed(path: Path) -> None:
    reader = Reader(path)
    write(path, LINES[0] + b"?" + LINES[1][1:])
    assert reader.read() == ENTRIES[:1]
    write(path, LINES[0] + b"?" + LINES[1][1:] + b"?" + LINES[2][1:])
    assert reader.read() == []
    write(path, LINES[0] + b"?" + LINES[1][1:] + b"?" + LINES[2][1:] + LINES[3][:-1] + b"?" + b"".join(LINES[4:]))
    assert reader.read() == ENTRIES[3:]
    assert reader.damage == [Damage(EDGES[1], EDGES[3] - EDGES[1]), Damage(EDGES[4] - 1, 1)]


@pytest.mark.parametrize("torn", [LINES[3][:30], LINES[3][:-1], LINES[3][:-1] + b"?", bytes(4000)])
def test_reader_continues_where_a_torn_tail_was_removed(path: Path, torn: bytes) -> None:
    reader = Reader(write(path, b"".join(LINES[:3]) + torn))
    assert reader.read() == ENTRIES[:3]
    with Journal(path) as journal:
        for number in range(20):
            journal.append("new", {"number": number})
    after = reader.read()
    assert ENTRIES[:3] + after == read_all(path)
    assert [each.content["number"] for each in after if each.kind == "new"] == list(range(20))
    assert [each for each in after if each.kind != "new"] == ([ENTRIES[3]] if LINES[3][:-1] in torn else [])
    assert reader.damage == []


def test_reader_reads_in_parts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(path) as journal:
        for number in range(300):
            journal.append("metrics", {"number": number})
        journal.append("metrics", {"long": "x" * 5000})
        journal.append("metrics", {"number": 301})
    size = path.stat().st_size
    with path.open("ab") as stream:
        stream.write(b"unfinished" * 300)
    monkeypatch.setattr(module, "READ_BYTES", 1000)
    reader = Reader(path)
    parts: list[list[Entry]] = []
    while part := reader.read():
        parts.append(part)
    assert [each.seq for part in parts for each in part] == list(range(1, 303))
    assert max(map(len, parts)) <= 1000 // len(encode(1, "metrics", {"number": 0}))
    assert reader.offset == size


def test_part_of_only_damage_is_not_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_BYTES", 100)
    reader = Reader(write(path, b"?\n" * 5000 + DATA))
    assert reader.read()[0] == ENTRIES[0]
    assert reader.damage == [Damage(0, 10_000)]
    with Journal(path) as journal:
        assert (journal.entries, journal.damage) == (ENTRIES, [Damage(0, 10_000)])
    assert path.read_bytes() == b"?\n" * 5000 + DATA


def test_reader_follows_a_thread_that_appends(path: Path) -> None:
    def append() -> None:
        for number in range(3000):
            journal.append("metrics", {"number": number, "x": "x" * (number % 700)})

    reader, entries = Reader(path), []
    with Journal(path) as journal:
        thread = threading.Thread(target=append)
        thread.start()
        while thread.is_alive():
            entries += reader.read()
        thread.join()
        entries += reader.read()
    assert [each.content["number"] for each in entries] == list(range(3000))
    assert [each.seq for each in entries] == list(range(1, 3001))
    assert reader.damage == []
