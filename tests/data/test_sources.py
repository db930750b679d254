from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.data.sources import default_cache_dir, open_dataset
from cnn_jobs.errors import DataError
from tests.data.conftest import Pictures, small_dataset


def refused(uri: str, message: str) -> str:
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(uri)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("uri", ["no/such/place", "cifar100", "nothing.zip", "none.npz", "Shapes", ""])
def test_a_missing_path_or_unknown_word_names_what_is_valid(uri: str) -> None:
    line = refused(uri, "no such file or directory; --data takes 'cifar10', 'shapes', an ImageFolder directory")
    assert line.startswith(uri or "the empty word")


def test_another_scheme_is_refused_without_repeating_its_password() -> None:
    line = refused("https://user:hunter2@host.example/x.npz?token=hunter3", "https://host.example...: not a data set")
    assert "hunter" not in line


@pytest.mark.parametrize("name", ["x.tar.gz", "x.csv", "x"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    refused(str(tmp_path / name), f"{name}: a file of this kind is not a data set; --data takes")


def test_shapes_needs_no_disk(cache_dir: Path) -> None:
    assert open_dataset("shapes").synthetic
    assert not cache_dir.exists()


def test_a_prepared_file_of_shapes_says_that_it_is_synthetic(tmp_path: Path) -> None:
    write_prepared(open_dataset("shapes"), tmp_path / "mine.npz", compressed=False)
    dataset = open_dataset(str(tmp_path / "mine.npz"))
    assert (dataset.name, dataset.synthetic) == ("mine", True)


def test_a_word_wins_over_a_directory_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    assert open_dataset("shapes").name == "shapes"
    refused("./shapes", r"\./shapes: has no class folders in train/")


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_prepared(small_dataset(), tmp_path / "x.npz", compressed=False)
    assert open_dataset("~/x.npz").digest == small_dataset().digest


@pytest.mark.parametrize("uri", [".", "train/.."])
def test_a_directory_given_as_dots_is_called_by_its_name(
    uri: str, write_folder: object, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_folder(pictures))  # type: ignore[operator]
    assert open_dataset(uri).name == "animals"


def test_the_cache_directory_is_that_of_the_variable_else_of_the_user(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_cache_dir() == cache_dir
    monkeypatch.delenv("CNN_JOBS_CACHE_DIR")
    assert default_cache_dir() == Path(platformdirs.user_cache_dir("cnn-jobs"))
