from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import cached, read_prepared, write_prepared
from cnn_jobs.errors import DataError, DiskFullError, StateDirError
from tests.data.conftest import small_dataset


def same(one: Dataset, two: Dataset) -> bool:
    return (one.digest, one.classes, one.synthetic) == (two.digest, two.classes, two.synthetic) and all(
        bool((a == b).all())
        for split in ("train", "test")
        for a, b in zip(one.split(split), two.split(split), strict=True)
    )


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
    classes = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    height, width = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))

    def split() -> tuple[np.ndarray, np.ndarray]:
        count = draw(st.integers(1, 3))
        images = draw(st_numpy.arrays(np.uint8, (count, 3, height, width)))
        return images, draw(st_numpy.arrays(np.int64, count, elements=st.integers(0, len(classes) - 1)))

    return Dataset.from_arrays(
        name="x", uri="x", classes=classes, train=split(), test=split(), synthetic=draw(st.booleans())
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(dataset=datasets(), compressed=st.booleans())
def test_what_was_written_is_read(tmp_path: Path, dataset: Dataset, compressed: bool) -> None:
    write_prepared(dataset, tmp_path / "x.npz", compressed=compressed)
    assert same(read_prepared(tmp_path / "x.npz"), dataset)


def test_the_file_is_named_as_its_source_was(tmp_path: Path) -> None:
    dataset = small_dataset()
    path = tmp_path / f"small-{dataset.digest[:12]}.npz"
    write_prepared(dataset, path, compressed=True)
    read = read_prepared(path)
    assert (read.name, read.uri) == ("small", str(path))
    assert read_prepared(path, uri="s3://bucket/other.npz").name == "other"


def arrays_of(dataset: Dataset, **changes: Any) -> dict[str, Any]:
    arrays = {
        "train_images": dataset.train_images.numpy().copy(),
        "train_labels": dataset.train_labels.numpy().copy(),
        "test_images": dataset.test_images.numpy().copy(),
        "test_labels": dataset.test_labels.numpy().copy(),
        "classes": np.array(dataset.classes),
        "digest": np.array(dataset.digest),
        "synthetic": np.array(False),
        "format_version": np.array(1),
    }
    return {name: value for name, value in {**arrays, **changes}.items() if value is not None}


def refused(path: Path, message: str) -> str:
    with pytest.raises(DataError, match=message) as caught:
        read_prepared(path, uri="data.npz")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_changed_pixel_is_found(tmp_path: Path) -> None:
    dataset = small_dataset()
    arrays = arrays_of(dataset)
    arrays["test_images"][0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "x.npz", **arrays)
    line = refused(tmp_path / "x.npz", "sha256")
    expected = (
        rf"data.npz: sha256 [0-9a-f]{{8}}, expected {dataset.digest[:8]}; delete it and run 'cnn-jobs data prepare'"
    )
    refused(tmp_path / "x.npz", f"^{expected}$")
    assert dataset.digest[:8] not in line.split(",")[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"digest": None, "synthetic": None, "format_version": None, "classes": None},
            "has no classes, digest.*prepare",
        ),
        ({"test_labels": None}, "has no test_labels: not a file that 'cnn-jobs data prepare' made"),
        ({"format_version": np.array(99)}, "format version 99, but this is 1; delete it and run"),
        ({"train_images": np.zeros((6, 3, 4, 5))}, "images are float64, but must be uint8"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, 7])}, "train label 7 is outside the 3 classes"),
        ({"classes": np.array(["a", "b", "c"], dtype=object)}, "damaged, or no prepared file .*delete it and run"),
        ({"classes": np.array("abc")}, "damaged, or no prepared file"),
        ({"format_version": np.array("one")}, "damaged, or no prepared file"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays_of(small_dataset(), **changes))
    refused(tmp_path / "x.npz", message)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\3\4 broken", b"\x93NUMPY\1\0"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    refused(tmp_path / "x.npz", "data.npz: ")


def test_a_single_array_is_no_data_set(tmp_path: Path) -> None:
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    refused(tmp_path / "x.npz", "damaged, or no prepared file")


def dataset_or_line(path: Path) -> Dataset | str:
    try:
        return read_prepared(path)
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("compressed", [True, False])
def test_every_cut_and_every_flipped_byte_is_an_error_or_harmless(tmp_path: Path, compressed: bool) -> None:
    """Harmless: names and times in the zip's own directory, of which the pictures do not depend."""
    dataset = small_dataset()
    path = tmp_path / "x.npz"
    write_prepared(dataset, path, compressed=compressed)
    whole = path.read_bytes()
    refusals = 0
    for position in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[position] ^= 0x10
        for content in (bytes(flipped), whole[:position]):
            path.write_bytes(content)
            read = dataset_or_line(path)
            if isinstance(read, str):
                refusals += 1
                assert "\n" not in read
            else:
                assert same(read, dataset)
    assert refusals > len(whole) // 7


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.npz", "cannot be read .No such file or directory")
    refused(tmp_path, "cannot be read .Is a directory")


def test_below_a_file_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StateDirError, match=r"x\.npz: cannot be written .*choose a directory") as caught:
        write_prepared(small_dataset(), tmp_path / "file" / "x.npz", compressed=False)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("compressed", [True, False])
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(small_disk: Path, compressed: bool) -> None:
    path = small_disk / "x.npz"
    write_prepared(small_dataset(), path, compressed=compressed)
    before = path.read_bytes()
    with pytest.raises(DiskFullError, match=r"x\.npz: no space left") as caught:
        write_prepared(small_dataset(train=3000), path, compressed=compressed)
    assert caught.value.exit_code == 1
    assert [file.name for file in small_disk.iterdir()] == ["x.npz"]
    assert path.read_bytes() == before


def test_a_cache_without_room_names_the_variable(small_disk: Path) -> None:
    with pytest.raises(DiskFullError, match=r"no space left.*CNN_JOBS_CACHE_DIR"):
        cached(small_disk / "x.npz", lambda: small_dataset(train=3000), name="x", uri="x")


def test_the_cache_is_made_once_and_carries_the_name_asked_for(tmp_path: Path) -> None:
    made: list[Dataset] = []

    def make() -> Dataset:
        made.append(small_dataset())
        return made[-1]

    first = cached(tmp_path / "c" / "x.npz", make, name="pets", uri="pets.zip")
    second = cached(tmp_path / "c" / "x.npz", make, name="pets", uri="pets.zip")
    assert len(made) == 1
    assert same(first, second)
    assert (second.name, second.uri) == ("pets", "pets.zip")


def test_a_damaged_cache_is_made_again_with_a_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "x.npz"
    cached(file, small_dataset, name="x", uri="pets.zip")
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with caplog.at_level(logging.WARNING):
        again = cached(file, small_dataset, name="x", uri="pets.zip")
    assert again.digest == small_dataset().digest == read_prepared(file).digest
    assert "the cache of pets.zip is damaged and made again" in caplog.text


def test_a_damaged_cache_is_gone_before_the_new_one_needs_its_room(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    file.write_bytes(b"PK damaged")
    there: list[bool] = []

    def make() -> Dataset:
        there.append(file.exists())
        return small_dataset()

    cached(file, make, name="x", uri="x")
    assert there == [False]


def test_a_cache_file_that_cannot_be_replaced_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.npz" / "inside").mkdir(parents=True)
    with pytest.raises(StateDirError, match=os.strerror(errno.EISDIR)):
        cached(tmp_path / "x.npz", small_dataset, name="x", uri="x")
