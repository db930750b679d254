import errno
import os
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cnn_jobs.errors import DiskFullError, StateDirError
from cnn_jobs.training.checkpoint import load_checkpoint, save_checkpoint
from cnn_jobs.training.loop import train
from tests.training.conftest import RECIPE, Experiment, differences, snapshot

CONTENT: dict[str, Any] = {
    "model": {"weight": torch.arange(6.0).reshape(2, 3)},
    "step": 7,
    "losses": [1.5, 0.25],
    "classes": ["a", "b"],
    "best": None,
    "recipe": {"lr": 1e-3, "optimizer": "adam"},
}


def test_plain_values_and_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "folder" / "last.pt", CONTENT)
    assert path == tmp_path / "folder" / "last.pt"
    assert differences(load_checkpoint(path), CONTENT) == []
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


def test_the_state_of_a_training_comes_back_in_every_bit(experiment: Experiment, tmp_path: Path) -> None:
    state = experiment.state()
    train(state, experiment.data(), RECIPE)
    path = save_checkpoint(tmp_path / "last.pt", state.state_dict())
    assert differences(load_checkpoint(path), snapshot(state)) == []


def test_a_checkpoint_replaces_the_one_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", {"step": 1})
    save_checkpoint(tmp_path / "last.pt", {"step": 2})
    assert load_checkpoint(tmp_path / "last.pt") == {"step": 2}


def test_loading_runs_no_code_from_the_file(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "trapped"),)

    torch.save({"model": Trap()}, tmp_path / "last.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(tmp_path / "last.pt")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EIO, StateDirError)])
def test_a_write_that_fails_leaves_the_old_file_whole_and_nothing_else(
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


def test_content_that_cannot_be_saved_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "last.pt", {"step": 1})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(path, {"step": lambda: 2})
    assert load_checkpoint(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_is_no_folder_is_refused_with_exit_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StateDirError, match=r"last\.pt: cannot be written") as caught:
        save_checkpoint(tmp_path / "file" / "last.pt", CONTENT)
    assert caught.value.exit_code == 2
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused_with_exit_2(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(StateDirError, match="Permission denied"):
        save_checkpoint(folder / "last.pt", CONTENT)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        permitted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        permitted = False
    if not permitted:
        pytest.skip("may not mount a file system here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_old_file_whole(small_disk: Path) -> None:
    path = save_checkpoint(small_disk / "last.pt", {"step": 1})
    with pytest.raises(DiskFullError, match=r"last\.pt: no space left") as caught:
        save_checkpoint(path, {"weights": torch.rand(100_000)})
    assert caught.value.exit_code == 1
    assert load_checkpoint(path) == {"step": 1}
    assert list(small_disk.iterdir()) == [path]
    save_checkpoint(path, {"step": 2})  # the room is free again
    assert load_checkpoint(path) == {"step": 2}
