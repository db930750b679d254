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
from tests.helpers.datasets import small_dataset


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
def test_a_written_data_set_is_read(tmp_path: Path, dataset: Dataset, compressed: bool) -> None:
    write_prepared(dataset, tmp_path / "x.npz", compressed=compressed)
    assert same(read_prepared(tmp_path / "x.npz"), dataset)


def test_the_data_set_has_the_name_of_its_source(tmp_path: Path) -> None:
    dataset = small_dataset()
    path = tmp_path / f"small-{dataset.digest[:12]}.npz"
    write_prepared(dataset, path, compressed=True)
    read = read_prepared(path)
    assert (read.name, read.uri) == ("small", str(path))
    assert read_prepared(path, uri="s3://bucket/other.npz").name == "other"


def arrays_of(dataset: Dataset, **changes: Any) -> dict[str, Any]:
    tensors = ("train_images", "train_labels", "test_images", "test_labels")
    arrays = {
        **{name: getattr(dataset, name).numpy().copy() for name in tensors},
        "classes": np.array(dataset.classes),
        "digest": np.array(dataset.digest),
        "synthetic": np.array(False),
        "format_version": np.array(1),
    }
    return {name: value for name, value in {**arrays, **changes}.items() if value is not None}


def rejected(path: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_prepared(path, uri="data.npz")
    assert "\n" not in str(caught.value)


def test_a_changed_pixel_is_found(tmp_path: Path) -> None:
    dataset = small_dataset()
    arrays = arrays_of(dataset)
    arrays["test_images"][0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "x.npz", **arrays)
    digest = dataset.digest[:8]
    rejected(tmp_path / "x.npz", f"^data.npz: sha256 (?!{digest})[0-9a-f]{{8}}, expected {digest}; delete it and run ")


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
def test_a_file_of_another_form_is_rejected(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays_of(small_dataset(), **changes))
    rejected(tmp_path / "x.npz", message)


def test_a_file_that_is_no_npz_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for content in (b"", b"not a zip", b"PK\3\4 broken", b"\x93NUMPY\1\0"):
        path.write_bytes(content)
        rejected(path, "data.npz: damaged, or no prepared file")
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    rejected(path, "damaged, or no prepared file")
    rejected(tmp_path / "none.npz", "cannot be read .No such file or directory")
    rejected(tmp_path, "cannot be read .Is a directory")


def dataset_or_line(path: Path) -> Dataset | str:
    try:
        return read_prepared(path)
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("compressed", [True, False])
def test_every_cut_and_every_flipped_byte_is_an_error_or_harmless(tmp_path: Path, compressed: bool) -> None:
    """Harmless: names and times in the zip's directory, on which the images do not depend."""
    dataset = small_dataset()
    path = tmp_path / "x.npz"
    write_prepared(dataset, path, compressed=compressed)
    whole = path.read_bytes()
    rejections = 0
    for position in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[position] ^= 0x10
        for content in (bytes(flipped), whole[:position]):
            path.write_bytes(content)
            read = dataset_or_line(path)
            if isinstance(read, str):
                rejections += 1
                assert "\n" not in read
            else:
                assert same(read, dataset)
    assert rejections > len(whole) // 7


def test_a_path_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StateDirError, match=r"x\.npz: cannot be written .*choose a directory") as caught:
        write_prepared(small_dataset(), tmp_path / "file" / "x.npz", compressed=False)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("compressed", [True, False])
def test_a_full_disk_is_an_error_and_leaves_no_partial_file(small_disk: Path, compressed: bool) -> None:
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


def test_the_cache_is_made_once_and_has_the_requested_name(tmp_path: Path) -> None:
    made: list[Dataset] = []

    def make() -> Dataset:
        made.append(small_dataset())
        return made[-1]

    first = cached(tmp_path / "c" / "x.npz", make, name="pets", uri="pets.zip")
    second = cached(tmp_path / "c" / "x.npz", make, name="pets", uri="pets.zip")
    assert len(made) == 1
    assert same(first, second)
    assert (second.name, second.uri) == ("pets", "pets.zip")


def test_a_damaged_cache_is_logged_deleted_and_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "x.npz"
    cached(file, small_dataset, name="x", uri="pets.zip")
    file.write_bytes(file.read_bytes()[:-100])

    def make() -> Dataset:
        assert not file.exists()  # the new file needs its space
        return small_dataset()

    with caplog.at_level(logging.WARNING):
        again = cached(file, make, name="x", uri="pets.zip")
    assert again.digest == small_dataset().digest == read_prepared(file).digest
    assert "the cache of pets.zip is damaged and made again" in caplog.text


def test_a_cache_file_that_cannot_be_replaced_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.npz" / "inside").mkdir(parents=True)
    with pytest.raises(StateDirError, match=os.strerror(errno.EISDIR)):
        cached(tmp_path / "x.npz", small_dataset, name="x", uri="x")
