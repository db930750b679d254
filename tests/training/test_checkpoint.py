"""Checkpoints on disk: every kind of damage, kills at every moment, disks that refuse."""

import errno
import hashlib
import io
import os
import pickle
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cnn_jobs.errors import CnnJobsError, DamagedCheckpointError, DiskError, DiskFullError, StateDirError
from cnn_jobs.networks.spec import ConvBlock, ConvNet
from cnn_jobs.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from tests.helpers.training import Experiment, differences, snapshot

CONTENT: dict[str, Any] = {
    "model": {"weight": torch.arange(6.0).reshape(2, 3)},
    "step": 7,
    "losses": [1.5, 0.25],
    "classes": ["a", "b"],
    "best": None,
    "recipe": {"lr": 1e-3, "optimizer": "adam"},
}


def test_values_and_tensors_are_read_back_unchanged(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "folder" / "last.pt", CONTENT)
    assert path == tmp_path / "folder" / "last.pt"
    assert differences(load_checkpoint(path), CONTENT) == []
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


def test_state_of_a_training_is_read_back_unchanged(experiment: Experiment, tmp_path: Path) -> None:
    state = experiment.state()
    experiment.train(state)
    path = save_checkpoint(tmp_path / "last.pt", state.state_dict())
    assert differences(load_checkpoint(path), snapshot(state)) == []


# -- its own digest ----------------------------------------------------------------------------------------------------


def test_file_is_readable_by_torch_and_zip(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "last.pt", CONTENT)
    assert differences(torch.load(path, weights_only=True), CONTENT) == []
    assert differences(torch.load(path, weights_only=True, mmap=True), CONTENT) == []
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        comment = archive.comment
    data = path.read_bytes()
    assert data.endswith(comment)
    assert comment == b"sha256:" + hashlib.sha256(data[: -len(comment)]).hexdigest().encode()


@pytest.fixture
def real(experiment: Experiment, tmp_path: Path) -> Path:
    """The smallest checkpoint of a training."""
    network = ConvNet(blocks=(ConvBlock(filters=1, kernel=3, padding=1),), hidden=1)
    return save_checkpoint(tmp_path / "real.pt", replace(experiment, network=network).state().state_dict())


def damage_message(path: Path) -> str:
    with pytest.raises(DamagedCheckpointError) as caught:
        load_checkpoint(path)
    assert type(caught.value) is DamagedCheckpointError
    assert caught.value.exit_code == 1
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert line.isprintable()
    return line


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80, 0xFF])  # 0x20 changes the case of a letter
def test_every_flipped_byte_is_detected(real: Path, mask: int) -> None:
    with real.open("rb+", buffering=0) as stream:
        for place, byte in enumerate(real.read_bytes()):
            os.pwrite(stream.fileno(), bytes([byte ^ mask]), place)
            damage_message(real)
            os.pwrite(stream.fileno(), bytes([byte]), place)
    load_checkpoint(real)


def test_every_truncation_is_detected(real: Path) -> None:
    for length in reversed(range(real.stat().st_size)):
        os.truncate(real, length)
        line = damage_message(real)
    assert line == f"{real}: is empty"


def test_additional_byte_is_detected(real: Path) -> None:
    with real.open("ab") as stream:
        stream.write(b"0")
    assert "is cut short, or was not written by cnn-jobs" in damage_message(real)


def sealed(content: bytes) -> bytes:
    """With a valid digest."""
    return content + b"sha256:" + hashlib.sha256(content).hexdigest().encode()


def saved_by_torch(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"not a checkpoint", "was not written by cnn-jobs"),
        (saved_by_torch({"step": 1}), "was not written by cnn-jobs"),
        (b"sha256:" + b"0" * 64, "is damaged: its SHA-256 is e3b0c44298fc, not the one at its end"),
        (sealed(b""), "is not a checkpoint, torch raised "),
        (sealed(b"not a checkpoint"), "is not a checkpoint, torch raised "),
        (sealed(b"PK\x03\x04 and no more"), "is not a checkpoint, torch raised RuntimeError"),
        (sealed(pickle.dumps({"step": 1}, protocol=2)), "is not a checkpoint, torch raised "),
        (sealed(saved_by_torch([1, 2])), "is not a checkpoint, it holds a list"),
    ],
)
def test_foreign_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "last.pt").write_bytes(content)
    assert reason in damage_message(tmp_path / "last.pt")


def test_loading_runs_no_code_from_the_file(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "trapped"),)

    save_checkpoint(tmp_path / "last.pt", {"model": Trap()})
    assert "torch raised UnpicklingError" in damage_message(tmp_path / "last.pt")
    assert not (tmp_path / "trapped").exists()
    torch.load(tmp_path / "last.pt", weights_only=False)
    assert (tmp_path / "trapped").exists()  # the trap works


def test_missing_file_is_not_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "last.pt")


def test_unreadable_path_is_not_damage(tmp_path: Path) -> None:
    (tmp_path / "last.pt").mkdir()
    for load in (lambda: load_checkpoint(tmp_path / "last.pt"), lambda: newest_checkpoint(tmp_path)):
        with pytest.raises(StateDirError, match=r"last\.pt: cannot be read \(Is a directory\)"):
            load()


def change_reads(monkeypatch: pytest.MonkeyPatch, suffix: str, change: Callable[[bytes], bytes]) -> None:
    """A disk that returns other bytes for files that end in ``suffix``."""
    real = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: change(real(path)) if path.name.endswith(suffix) else real(path)
    )


def bad_sector(data: bytes) -> bytes:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_bad_sector_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "last.pt", CONTENT)
    change_reads(monkeypatch, "last.pt", bad_sector)
    assert (
        damage_message(tmp_path / "last.pt") == f"{tmp_path / 'last.pt'}: the disk cannot read it (Input/output error)"
    )


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b"\0" * len(data)])
def test_file_that_reads_back_differently_does_not_replace_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes]
) -> None:
    path, keep = tmp_path / "last.pt", tmp_path / "previous.pt"
    save_checkpoint(path, {"step": 1})
    change_reads(monkeypatch, ".partial", change)
    with pytest.raises(CnnJobsError, match=r"last\.pt: was written, but reads back with another content") as caught:
        save_checkpoint(path, {"step": 2}, keep=keep)
    assert caught.value.exit_code == 1
    assert load_checkpoint(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


# -- the previous file -------------------------------------------------------------------------------------------------


@pytest.fixture
def last(tmp_path: Path) -> Path:
    return tmp_path / "last.pt"


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    return tmp_path / "previous.pt"


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def no_hard_links(source: object, target: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("links", [True, False])
def test_previous_file_is_kept_under_another_name(
    last: Path, previous: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_hard_links)
    for step in (1, 2, 3, 4):
        inode = last.exists() and last.stat().st_ino
        assert save_checkpoint(last, {"step": step}, keep=previous) == last
        assert load_checkpoint(last) == {"step": step}
        assert newest_checkpoint(last.parent) == ({"step": step}, [])
        if step > 1:
            assert load_checkpoint(previous) == {"step": step - 1}
            assert (previous.stat().st_ino == inode) == links
        assert {path.name for path in last.parent.iterdir()} == ({"last.pt", "previous.pt"} if inode else {"last.pt"})


def test_damaged_file_does_not_replace_the_last_undamaged_one(last: Path, previous: Path) -> None:
    save_checkpoint(last, {"step": 1}, keep=previous)
    save_checkpoint(last, {"step": 2}, keep=previous)
    damage(last)
    save_checkpoint(last, {"step": 3}, keep=previous)
    assert (load_checkpoint(last), load_checkpoint(previous)) == ({"step": 3}, {"step": 1})


def test_save_after_a_kill_between_link_and_rename(last: Path, previous: Path) -> None:
    save_checkpoint(last, {"step": 1})
    os.link(last, previous)
    save_checkpoint(last, {"step": 2}, keep=previous)
    assert (load_checkpoint(last), load_checkpoint(previous)) == ({"step": 2}, {"step": 1})
    assert set(last.parent.iterdir()) == {last, previous}


def test_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) == newest_checkpoint(tmp_path / "missing") == (None, [])


def test_previous_file_is_used_where_the_last_is_damaged_or_missing(last: Path, previous: Path) -> None:
    save_checkpoint(last, {"step": 1}, keep=previous)
    save_checkpoint(last, {"step": 2}, keep=previous)
    damage(last)
    content, notes = newest_checkpoint(last.parent)
    assert content == {"step": 1}
    assert len(notes) == 1
    assert notes[0].startswith(f"{last}: is damaged: its SHA-256 is ")
    assert notes[0].endswith(", not the one at its end; skipped")
    last.unlink()
    assert newest_checkpoint(last.parent) == ({"step": 1}, [])
    previous.write_bytes(b"")
    last.write_bytes(b"")
    assert newest_checkpoint(last.parent) == (
        None,
        [f"{last}: is empty; skipped", f"{previous}: is empty; skipped"],
    )


# -- kill -9 -----------------------------------------------------------------------------------------------------------

# Processes that are killed at their n-th file operation, for every n until one completes.
KILLED_AT_EVERY_OPERATION = """
import os, signal, sys
from pathlib import Path
from cnn_jobs.training.checkpoint import load_checkpoint, save_checkpoint

last, previous = Path("last.pt"), Path("previous.pt")

def save_until(operation):
    left = operation
    def on_event(event, arguments):
        nonlocal left
        if event in ("open", "os.link", "os.rename", "os.remove"):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(on_event)
    save_checkpoint(last, {"step": 2}, keep=previous)

code, operation = -1, 0
while code:
    save_checkpoint(previous, {"step": 0})
    save_checkpoint(last, {"step": 1})
    child = os.fork()
    if not child:
        save_until(operation)
        os._exit(0)
    code, operation = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), operation + 1
    print(code, load_checkpoint(previous)["step"], load_checkpoint(last)["step"])
"""

# Processes that only save, each continuing where the last one was killed: most kills hit a save.
KILLED_AT_RANDOM = """
import os, random, signal, time
from pathlib import Path
import torch
from cnn_jobs.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint

last, previous, chance = Path("last.pt"), Path("previous.pt"), random.Random(0)
torch.set_num_threads(1)  # a forked process lacks OpenMP's other threads and would wait for them

def save_for_ever(report):
    signal.alarm(100)  # in case nobody kills it
    content, _ = newest_checkpoint(Path())
    step = content["step"] if content else 0
    while True:
        step += 1
        save_checkpoint(last, {"step": step, "weights": torch.full((500_000,), float(step))}, keep=previous)
        os.write(report, b"%d " % step)

for _ in range(12):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        save_for_ever(writing)
    os.close(writing)
    reported = os.read(reading, 100)
    time.sleep(chance.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(reading, 1000):
        reported += more
    os.close(reading)
    steps = reported.split()
    content, notes = newest_checkpoint(Path())
    assert bool((content["weights"] == content["step"]).all())
    older = load_checkpoint(previous)["step"] if previous.exists() else 0
    print(int(steps[0]), int(steps[-1]), content["step"], older, len(notes))
"""


def printed_by(script: str, folder: Path) -> list[list[int]]:
    """The numbers on each line that a new interpreter prints."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [[int(number) for number in line.split()] for line in done.stdout.splitlines()]


def test_kill_at_every_file_operation_leaves_undamaged_checkpoints(tmp_path: Path) -> None:
    *killed, complete = printed_by(KILLED_AT_EVERY_OPERATION, tmp_path)
    assert len(killed) > 8
    assert {code for code, _, _ in killed} == {-signal.SIGKILL}
    # Nothing done yet, the old file kept, the new one in its place.
    assert sorted({(older, newer) for _, older, newer in killed}) == [(0, 1), (1, 1), (1, 2)]
    assert complete == [0, 1, 2]


def test_kill_at_random_keeps_the_last_completed_save(tmp_path: Path) -> None:
    before = 0
    for first, done, newest, older, notes in printed_by(KILLED_AT_RANDOM, tmp_path):
        assert first == before + 1
        assert newest in (done, done + 1)
        assert older in (newest - 1, newest)
        assert notes == 0
        before = newest
    assert before >= 12


# -- disks that refuse -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EIO, DiskError)])
def test_failed_write_keeps_only_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    path = save_checkpoint(tmp_path / "last.pt", {"step": 1})

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(kind, match=r"last\.pt"):
            save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_file_system_that_cannot_sync_folders_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, synced = os.fsync, []

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            synced.append(descriptor)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    assert load_checkpoint(save_checkpoint(tmp_path / "last.pt", CONTENT))["step"] == 7
    assert len(synced) == 1


def test_content_that_cannot_be_saved_keeps_the_old_file(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "last.pt", {"step": 1})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(path, {"step": lambda: 2})
    assert load_checkpoint(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StateDirError, match=r"last\.pt: cannot be written") as caught:
        save_checkpoint(tmp_path / "file" / "last.pt", CONTENT)
    assert caught.value.exit_code == 2
    assert (tmp_path / "file").read_text() == "in the way"


def test_full_disk_keeps_the_old_file(small_disk: Path) -> None:
    path = save_checkpoint(small_disk / "last.pt", {"step": 1})
    with pytest.raises(DiskFullError, match=r"last\.pt: no space left") as caught:
        save_checkpoint(path, {"weights": torch.rand(100_000)})
    assert caught.value.exit_code == 1
    assert load_checkpoint(path) == {"step": 1}
    assert list(small_disk.iterdir()) == [path]
    save_checkpoint(path, {"step": 2})  # the space is free again
    assert load_checkpoint(path) == {"step": 2}
