from __future__ import annotations

import io
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn_jobs.data.imagefolder import open_imagefolder
from cnn_jobs.data.prepared import read_prepared, write_prepared
from cnn_jobs.data.sources import open_dataset
from cnn_jobs.errors import DataError, StateDirError
from tests.data.conftest import Pictures, png

WriteFolder = Callable[[Pictures], Path]
WriteZip = Callable[..., Path]
REAL_ZIP = Path(__file__).parents[2] / ".." / "shared" / "data" / "cifar10-jpeg.zip"


def refused(path: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(str(path))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_pictures_come_in_the_order_of_class_and_name(write_folder: WriteFolder, pictures: Pictures) -> None:
    dataset = open_dataset(str(write_folder(dict(reversed(pictures.items())))))
    assert dataset.classes == ("cat", "dog")
    assert dataset.train_labels.tolist() == [0, 0, 0, 1, 1]
    assert dataset.test_labels.tolist() == [0, 1]
    assert dataset.train_images.shape == (5, 3, 4, 5)
    for row, name in enumerate(sorted(name for name in pictures if name.startswith("train"))):
        expected = np.asarray(Image.open(io.BytesIO(pictures[name]))).transpose(2, 0, 1)
        assert (dataset.train_images[row].numpy() == expected).all()
    assert (dataset.name, dataset.synthetic) == ("animals", False)


def test_directory_zip_and_prepared_file_have_one_digest(
    write_folder: WriteFolder, write_zip: WriteZip, pictures: Pictures, tmp_path: Path
) -> None:
    folder, archive = open_dataset(str(write_folder(pictures))), open_dataset(str(write_zip(pictures)))
    enclosed = open_dataset(str(write_zip({f"top/{name}": png for name, png in pictures.items()}, "top.zip")))
    write_prepared(folder, tmp_path / "x.npz", compressed=True)
    assert folder.digest == archive.digest == enclosed.digest == read_prepared(tmp_path / "x.npz").digest
    assert (archive.name, enclosed.name) == ("animals", "top")


def test_what_systems_add_unasked_is_not_looked_at(write_zip: WriteZip, pictures: Pictures) -> None:
    extra = {
        "__MACOSX/train/cat/._0.png": b"x", "train/.DS_Store": b"x", "train/cat/._0.png": b"x",
        "README.txt": b"x", "train/cat/notes.txt": b"x", "train/.hidden/0.png": b"x",
    }  # fmt: skip
    plain = open_dataset(str(write_zip(pictures))).digest
    assert open_dataset(str(write_zip({**pictures, **extra}, "more.zip"))).digest == plain


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_other_modes_become_rgb(write_zip: WriteZip, pictures: Pictures, mode: str) -> None:
    content = png(5, 4, 99, mode)
    dataset = open_dataset(str(write_zip({**pictures, "train/cat/1.png": content})))
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)
    assert (dataset.train_images[1].numpy() == expected).all()


def test_a_grey_pixel_has_three_equal_channels(write_zip: WriteZip, pictures: Pictures) -> None:
    dataset = open_dataset(str(write_zip({**pictures, "train/cat/1.png": png(5, 4, 1, "L")})))
    red, green, blue = dataset.train_images[1]
    assert (red == green).all()
    assert (red == blue).all()


def test_a_palette_with_transparency_becomes_rgb_without_a_warning(write_zip: WriteZip, pictures: Pictures) -> None:
    file = io.BytesIO()
    Image.new("P", (5, 4)).save(file, "PNG", transparency=b"\0\1\2")
    assert open_dataset(str(write_zip({**pictures, "train/cat/1.png": file.getvalue()}))).train_images[1].sum() == 0


def test_a_picture_of_16_bits_is_refused_and_not_clipped(write_zip: WriteZip, pictures: Pictures) -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5), 40_000, np.uint16)).save(file, "PNG")
    archive = write_zip({**pictures, "train/cat/1.png": file.getvalue()})
    refused(archive, r"train/cat/1\.png has mode I;16, but only 8-bit")


@pytest.mark.parametrize("name", ["train/dog/1.png", "test/cat/0.png"])
def test_a_picture_of_another_size_is_named_with_both_sizes(write_zip: WriteZip, pictures: Pictures, name: str) -> None:
    archive = write_zip({**pictures, name: png(6, 4, 0)})
    refused(archive, rf"animals\.zip: {name} is 6x4, but train/cat/0\.png is 5x4; bring all")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_a_file_that_is_no_picture_is_named(write_folder: WriteFolder, pictures: Pictures, content: bytes) -> None:
    refused(write_folder({**pictures, "train/dog/1.png": content}), r"train/dog/1\.png cannot be decoded")


@pytest.mark.parametrize("kept", [0.3, 0.6])
def test_a_cut_picture_is_named(write_folder: WriteFolder, pictures: Pictures, kept: float) -> None:
    content = png(5, 4, 0)
    cut = content[: int(len(content) * kept)]
    refused(write_folder({**pictures, "test/dog/0.png": cut}), r"test/dog/0\.png cannot be decoded")


@pytest.mark.parametrize("as_zip", [True, False])
def test_an_empty_class_folder_is_named(
    write_folder: WriteFolder, write_zip: WriteZip, pictures: Pictures, as_zip: bool
) -> None:
    folder = write_folder(pictures)
    (folder / "train" / "eel").mkdir()
    path = write_zip({**pictures, "train/eel/": b""}) if as_zip else folder
    refused(path, "class folder train/eel has no .png, .jpg, .jpeg; fill or remove it")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_split_is_named(write_zip: WriteZip, pictures: Pictures, split: str) -> None:
    rest = {name: content for name, content in pictures.items() if not name.startswith(split)}
    refused(write_zip({**rest, "readme.txt": b""}), f"has no class folders in {split}/; the layout is train/<class>")


def test_classes_of_one_split_only_are_named(write_zip: WriteZip, pictures: Pictures) -> None:
    refused(write_zip({**pictures, "test/emu/0.png": png(5, 4, 0)}), "same class folders; only one has emu")


@pytest.mark.parametrize("name", ["train/0.png", "train/cat/deep/0.png"])
def test_a_picture_outside_a_class_folder_is_not_left_out_in_silence(
    write_zip: WriteZip, pictures: Pictures, name: str
) -> None:
    refused(write_zip({**pictures, name: png(5, 4, 0)}), f"{name} lies outside a class folder")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\3\4"])
def test_a_corrupt_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    refused(tmp_path / "x.zip", r"x\.zip: not a zip file, or a damaged one")


def test_a_cut_zip_is_refused(write_zip: WriteZip, pictures: Pictures) -> None:
    archive = write_zip(pictures)
    archive.write_bytes(archive.read_bytes()[:-30])
    refused(archive, r"animals\.zip: not a zip file, or a damaged one")


def test_a_flipped_byte_in_a_zip_names_the_picture(write_zip: WriteZip, pictures: Pictures) -> None:
    archive = write_zip(pictures)
    content = bytearray(archive.read_bytes())
    content[content.index(pictures["train/cat/2.png"]) + 50] ^= 1
    archive.write_bytes(content)
    refused(archive, r"train/cat/2\.png cannot be unpacked .*Bad CRC-32")


def decodings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with every picture that Pillow opens from now on."""
    opened: list[object] = []
    real = Image.open

    def counting(file: io.BytesIO) -> Image.Image:
        opened.append(file)
        return real(file)

    monkeypatch.setattr(Image, "open", counting)
    return opened


@pytest.mark.parametrize("as_zip", [True, False])
def test_pictures_are_decoded_once(
    write_folder: WriteFolder,
    write_zip: WriteZip,
    pictures: Pictures,
    monkeypatch: pytest.MonkeyPatch,
    as_zip: bool,
) -> None:
    path = write_zip(pictures) if as_zip else write_folder(pictures)
    opened = decodings(monkeypatch)
    first = open_dataset(str(path))
    assert len(opened) == 7
    second = open_dataset(str(path))
    assert len(opened) == 7
    assert (second.digest, second.name, second.uri) == (first.digest, "animals", str(path))


def test_a_zip_moved_elsewhere_is_still_known(
    write_zip: WriteZip, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_dataset(str(write_zip(pictures)))
    moved = shutil.move(tmp_path / "animals.zip", tmp_path / "pets.zip")
    opened = decodings(monkeypatch)
    assert open_dataset(str(moved)).name == "pets"
    assert not opened


@pytest.mark.parametrize("change", ["touched", "added", "renamed"])
def test_a_changed_directory_is_decoded_again(write_folder: WriteFolder, pictures: Pictures, change: str) -> None:
    root = write_folder(pictures)
    before = open_dataset(str(root)).digest
    picture = root / "train" / "cat" / "0.png"
    if change == "touched":
        size = picture.stat().st_size
        seed = next(seed for seed in range(100, 10_000) if len(png(5, 4, seed)) == size)
        picture.write_bytes(png(5, 4, seed))
        os.utime(picture, ns=(0, 12_345))
    elif change == "added":
        (root / "train" / "cat" / "9.png").write_bytes(png(5, 4, 9))
    else:
        picture.rename(root / "train" / "dog" / "9.png")
    assert open_dataset(str(root)).digest != before


def test_a_damaged_cache_is_not_trusted(write_zip: WriteZip, pictures: Pictures, cache_dir: Path) -> None:
    archive = str(write_zip(pictures))
    whole = open_dataset(archive)
    (file,) = cache_dir.iterdir()
    content = bytearray(file.read_bytes())
    content[content.index(whole.train_images.numpy().tobytes()) + 1] ^= 1
    file.write_bytes(content)
    assert open_dataset(archive).digest == whole.digest
    assert read_prepared(file).digest == whole.digest


def test_a_cache_of_the_wrong_pictures_is_named_by_its_digest(
    write_zip: WriteZip, pictures: Pictures, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Written whole, with right checksums of the zip, but other pixels than the digest says."""
    archive = str(write_zip(pictures))
    whole = open_dataset(archive)
    (file,) = cache_dir.iterdir()
    with np.load(file) as arrays:
        changed = dict(arrays)
    changed["train_images"][0, 0, 0, 0] ^= 1
    np.savez(file, **changed)
    assert open_dataset(archive).digest == whole.digest
    assert f"expected {whole.digest[:8]}" in caplog.text


def test_a_cache_that_cannot_be_written_is_said_in_one_line(
    write_zip: WriteZip, pictures: Pictures, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    archive = write_zip(pictures)
    with pytest.raises(StateDirError, match=r"cannot be written .*CNN_JOBS_CACHE_DIR names the cache"):
        open_imagefolder(archive, uri="animals.zip", cache_dir=tmp_path / "file" / "cache")


def test_a_link_to_a_parent_does_not_end_in_a_circle(write_folder: WriteFolder, pictures: Pictures) -> None:
    root = write_folder(pictures)
    plain = open_dataset(str(root)).digest
    (root / "loop").symlink_to(root)
    assert open_dataset(str(root)).digest == plain


def test_a_class_folder_may_be_a_link(write_folder: WriteFolder, pictures: Pictures, tmp_path: Path) -> None:
    root = write_folder(pictures)
    plain = open_dataset(str(root)).digest
    shutil.move(root / "train" / "cat", tmp_path / "cats")
    (root / "train" / "cat").symlink_to(tmp_path / "cats")
    assert open_dataset(str(root)).digest == plain


@pytest.mark.slow
def test_the_jpeg_copy_of_cifar10_is_decoded_once() -> None:
    if not REAL_ZIP.exists():
        pytest.skip("../shared/data/cifar10-jpeg.zip is not here")
    started = time.perf_counter()
    dataset = open_dataset(str(REAL_ZIP))
    decoding_s = time.perf_counter() - started
    assert dataset.train_images.shape == (50_000, 3, 32, 32)
    assert dataset.test_images.shape == (10_000, 3, 32, 32)
    assert np.bincount(dataset.train_labels).tolist() == [5000] * 10
    with zipfile.ZipFile(REAL_ZIP) as archive, archive.open("test/truck/0999.jpg") as file:
        last = np.asarray(Image.open(file)).transpose(2, 0, 1)
    assert (dataset.test_images[-1].numpy() == last).all()
    started = time.perf_counter()
    assert open_dataset(str(REAL_ZIP)).digest == dataset.digest
    # 14 s and 0.3 s on two idle cores; a ratio, since a busy machine slows both.
    assert time.perf_counter() - started < decoding_s / 3
