"""Artifacts that wait for their upload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cnn_jobs.tracking.outbox import Outbox


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """A staged file, as it is recorded."""
    (tmp_path / "last.pt").write_text("weights")
    (content,) = Outbox(tmp_path).stage(tmp_path / "last.pt", "checkpoints/last.pt", passing=True)
    return content


def staged(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted((folder / "outbox").rglob("*")) if path.is_file()]


def replace(path: Path, text: str) -> None:
    """As all files of a run: replaced, never written into."""
    path.unlink()
    path.write_text(text)


def test_staged_file_keeps_its_content(tmp_path: Path, record: dict[str, Any]) -> None:
    replace(tmp_path / "last.pt", "newer weights")
    found = Outbox(tmp_path).find(record)
    assert found
    assert (found.name, found.read_text(), record["passing"]) == ("last.pt", "weights", True)
    Outbox(tmp_path).discard(record)
    assert staged(tmp_path) == []


def test_damaged_staged_file_is_staged_again_from_its_source(tmp_path: Path, record: dict[str, Any]) -> None:
    found = Outbox(tmp_path).find(record)
    assert found
    replace(found, "damaged")
    again = Outbox(tmp_path).find(record)
    assert again == found
    assert again.read_text() == "weights"
    found.unlink()
    replace(tmp_path / "last.pt", "newer weights")
    assert Outbox(tmp_path).find(record) is None


def test_unrecorded_files_are_swept(tmp_path: Path, record: dict[str, Any]) -> None:
    (tmp_path / "b.txt").write_text("not recorded")
    list(Outbox(tmp_path).stage(tmp_path / "b.txt", "b.txt"))
    assert len(staged(tmp_path)) == 2
    Outbox(tmp_path).sweep([record])
    assert staged(tmp_path) == ["weights"]
