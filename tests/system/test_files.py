"""Files appear complete or not at all."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cnn_jobs.errors import DiskFullError, StateDirError
from cnn_jobs.system.files import atomic_file, make_folder, sync_folder, write_text


def test_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "x.txt"
    with atomic_file(path) as partial:
        partial.write_text("new")
        assert not path.exists()
        assert partial.parent == path.parent
        assert partial.name.endswith(".partial")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_old_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = write_text(tmp_path / "x.txt", "old")
    with atomic_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_error_while_writing_keeps_only_the_old_file(tmp_path: Path, kind: type[BaseException]) -> None:
    path = write_text(tmp_path / "x.txt", "old")

    def write_half() -> None:
        with atomic_file(path) as partial:
            partial.write_text("half")
            raise kind

    with pytest.raises(kind):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_are_independent(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    with atomic_file(path) as one, atomic_file(path) as other:
        one.write_text("one")
        other.write_text("other")
        assert one.read_text() == "one"
    assert path.read_text() == "one"  # the outer one ends last
    assert list(tmp_path.iterdir()) == [path]


def test_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        events.append("fsync")
        real_sync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        events.append("replace")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    write_text(tmp_path / "x.txt", "text")
    assert events == ["fsync", "replace"]


KILLED_WRITER = """
import sys
from pathlib import Path
from cnn_jobs.system.files import write_text
path = Path(sys.argv[1])
while True:
    for letter in "ab":
        write_text(path, letter * 300_000)
        print(flush=True)
"""


def test_killed_writer_leaves_a_complete_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    for pause in (0.0, 0.003, 0.011):
        command = [sys.executable, "-c", KILLED_WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(pause)
            process.kill()
        assert path.read_text() in ("a" * 300_000, "b" * 300_000)


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [(errno.ENOSPC, DiskFullError, 1), (errno.EDQUOT, DiskFullError, 1), (errno.EROFS, StateDirError, 2)],
)
def test_errors_of_the_disk_are_classified(tmp_path: Path, number: int, kind: type[DiskFullError], code: int) -> None:
    def write() -> None:
        with atomic_file(tmp_path / "x.txt"):
            raise OSError(number, os.strerror(number))

    with pytest.raises(kind, match=r"x\.txt: ") as caught:
        write()
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, as on Linux")
def test_full_device(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_file(tmp_path / "x.txt"), Path("/dev/full").open("w") as stream:
            stream.write("text")

    with pytest.raises(DiskFullError, match="no space left"):
        write()


def test_file_in_place_of_a_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StateDirError):
        write_text(tmp_path / "file" / "x.txt", "text")
    with pytest.raises(StateDirError):
        make_folder(tmp_path / "file" / "folder")
    assert (tmp_path / "file").read_text() == "in the way"


def test_folder_in_place_of_the_file_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "x.txt").mkdir()
    with pytest.raises(StateDirError):
        write_text(tmp_path / "x.txt", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_text_is_written_unchanged(tmp_path: Path) -> None:
    text = "first\r\nsecond\n\u00e4\u4e16\n"
    path = write_text(tmp_path / "x.txt", text)
    assert path.read_bytes() == text.encode("utf-8")


def test_folder_is_created_with_its_parents_and_may_exist(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "a" / "b")
    assert path.is_dir()
    assert make_folder(path) == path


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_file_system_that_cannot_sync_folders_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(descriptor: int, error: int = number) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", fail)
    sync_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda descriptor: fail(descriptor, errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        sync_folder(tmp_path)
