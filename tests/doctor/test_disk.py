"""Disks that are full, for real."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cnn_jobs.doctor import machine
from cnn_jobs.doctor.machine import MIB, check_disk

Mount = Callable[[str], Path]


def test_a_disk_with_room(mounted: Mount) -> None:
    folder = mounted("size=3g,nr_inodes=5000")
    finding = check_disk(folder)
    assert finding.status == "ok"
    assert finding.found.startswith(f"{folder}: 3.2 GB and 4,9")


def test_what_is_missing_is_made_and_taken_away_again(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert str(folder) in check_disk(folder).found
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    check_disk(folder)
    assert [each.name for each in tmp_path.rglob("*")] == ["a"]


def test_little_room(mounted: Mount) -> None:
    finding = check_disk(mounted("size=1g"))
    assert finding.status == "warning"
    assert "1.1 GB and" in finding.found
    assert "--state-dir" in finding.advice


def test_too_little_room(mounted: Mount) -> None:
    finding = check_disk(mounted("size=50m"))
    assert (finding.status, "52.4 MB and" in finding.found) == ("failed", True)


def test_no_room_at_all(mounted: Mount) -> None:
    folder = mounted("size=64k")
    (folder / "full").write_bytes(b"x" * 65536)
    finding = check_disk(folder / "state")
    assert (finding.status, "no space left on the device" in finding.found) == ("failed", True)
    assert [each.name for each in folder.iterdir()] == ["full"]


@pytest.mark.parametrize(("inodes", "status"), [(20, "failed"), (500, "warning")])
def test_few_inodes(mounted: Mount, inodes: int, status: str) -> None:
    finding = check_disk(mounted(f"size=3g,nr_inodes={inodes}"))
    assert finding.status == status
    assert f"{inodes - 1} inodes free" in finding.found  # one is the folder's own


def test_no_inode_left(mounted: Mount) -> None:
    folder = mounted("size=3g,nr_inodes=3")
    for name in ("a", "b"):
        (folder / name).touch()
    finding = check_disk(folder)
    assert (finding.status, "no space left" in finding.found) == ("failed", True)


def test_a_file_system_without_a_limit_of_inodes(mounted: Mount) -> None:
    folder = mounted("size=3g,nr_inodes=0")
    assert os.statvfs(folder).f_files == 0
    finding = check_disk(folder)
    assert (finding.status, "any number of inodes" in finding.found) == ("ok", True)


def test_a_disk_that_is_read_only(mounted: Mount) -> None:
    folder = mounted("size=3g")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    finding = check_disk(folder)
    assert (finding.status, "Read-only file system" in finding.found) == ("failed", True)


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    finding = check_disk(tmp_path / "file" / "state")
    assert (finding.status, "Not a directory" in finding.found) == ("failed", True)
    assert finding.advice


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    machine.write_and_delete(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert MIB == 1_048_576
