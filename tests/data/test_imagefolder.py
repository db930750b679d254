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

from cnn_jobs.data.prepared import read_prepared, write_prepared
from cnn_jobs.data.sources import open_dataset
from cnn_jobs.errors import DataError
from tests.helpers.datasets import Images, png

WriteFolder = Callable[[Images], Path]
WriteZip = Callable[..., Path]
REAL_ZIP = Path(__file__).parents[2] / ".." / "shared" / "data" / "cifar10-jpeg.zip"


def rejected(path: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(str(path))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


def test_images_are_sorted_by_class_and_name(write_folder: WriteFolder, images: Images) -> None:
    dataset = open_dataset(str(write_folder(dict(reversed(images.items())))))
    assert dataset.classes == ("cat", "dog")
    assert dataset.train_labels.tolist() == [0, 0, 0, 1, 1]
    assert dataset.test_labels.tolist() == [0, 1]
    assert dataset.train_images.shape == (5, 3, 4, 5)
    for split in ("train", "test"):
        names = sorted(name for name in images if name.startswith(split))
        for row, name in enumerate(names):
            assert (dataset.split(split)[0][row].numpy() == pixels_of(images[name])).all()
    assert (dataset.name, dataset.synthetic) == ("animals", False)


def test_directory_zip_and_prepared_file_have_one_digest(
    write_folder: WriteFolder, write_zip: WriteZip, images: Images, tmp_path: Path
) -> None:
    folder, archive = open_dataset(str(write_folder(images))), open_dataset(str(write_zip(images)))
    enclosed = open_dataset(str(write_zip({f"top/{name}": png for name, png in images.items()}, "top.zip")))
    write_prepared(folder, tmp_path / "x.npz", compressed=True)
    assert folder.digest == archive.digest == enclosed.digest == read_prepared(tmp_path / "x.npz").digest
    assert (archive.name, enclosed.name) == ("animals", "top")


def test_files_of_operating_systems_are_ignored(write_zip: WriteZip, images: Images) -> None:
    extra = {
        "__MACOSX/train/cat/._0.png": b"x", "train/.DS_Store": b"x", "train/cat/._0.png": b"x",
        "README.txt": b"x", "train/cat/notes.txt": b"x", "train/.hidden/0.png": b"x",
    }  # fmt: skip
    plain = open_dataset(str(write_zip(images))).digest
    assert open_dataset(str(write_zip({**images, **extra}, "more.zip"))).digest == plain


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_other_modes_become_rgb(write_zip: WriteZip, images: Images, mode: str) -> None:
    content = png(5, 4, 99, mode)
    found = open_dataset(str(write_zip({**images, "train/cat/1.png": content}))).train_images[1].numpy()
    assert (found == pixels_of(content)).all()
    assert mode not in ("1", "L", "LA") or (found == found[0]).all()  # grey: three equal channels


def test_a_palette_with_transparency_becomes_rgb_without_a_warning(write_zip: WriteZip, images: Images) -> None:
    file = io.BytesIO()
    Image.new("P", (5, 4)).save(file, "PNG", transparency=b"\0\1\2")
    assert open_dataset(str(write_zip({**images, "train/cat/1.png": file.getvalue()}))).train_images[1].sum() == 0


def deep_png() -> bytes:
    """A PNG of 16 bits."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5), 40_000, np.uint16)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train/cat/1.png", deep_png(), r"train/cat/1\.png has mode I;16, but must be an 8-bit image"),
        ("train/dog/1.png", png(6, 4, 0), r"animals: train/dog/1\.png is 6x4, but train/cat/0\.png is 5x4; bring all"),
        ("test/cat/0.png", png(6, 4, 0), r"animals: test/cat/0\.png is 6x4, but train/cat/0\.png is 5x4; bring all"),
        *(
            ("test/dog/0.png", content, r"test/dog/0\.png cannot be decoded")
            for content in (b"", b"no image", b"\x89PNG\r\n\x1a\n", b"GIF89a", png(5, 4, 0)[:40], png(5, 4, 0)[:80])
        ),
        ("test/emu/0.png", png(5, 4, 0), "same class folders; only one has emu"),
        ("train/0.png", png(5, 4, 0), "train/0.png is outside a class folder"),
    ],
)
def test_an_image_of_another_form_is_rejected_by_its_name(
    write_folder: WriteFolder, images: Images, name: str, content: bytes, message: str
) -> None:
    rejected(write_folder({**images, name: content}), message)


def test_an_image_below_a_class_folder_is_rejected(write_zip: WriteZip, images: Images) -> None:
    archive = write_zip({**images, "train/cat/deep/0.png": png(5, 4, 0)})
    rejected(archive, r"train/cat/deep/0\.png is outside a class folder")


@pytest.mark.parametrize("as_zip", [True, False])
def test_an_empty_class_folder_is_rejected(
    write_folder: WriteFolder, write_zip: WriteZip, images: Images, as_zip: bool
) -> None:
    folder = write_folder(images)
    (folder / "train" / "eel").mkdir()
    path = write_zip({**images, "train/eel/": b""}) if as_zip else folder
    rejected(path, "class folder train/eel has no .png, .jpg, .jpeg; fill or remove it")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_split_is_rejected(write_zip: WriteZip, images: Images, split: str) -> None:
    rest = {name: content for name, content in images.items() if not name.startswith(split)}
    rejected(write_zip({**rest, "readme.txt": b""}), f"has no class folders in {split}/; the layout is train/<class>")


def test_a_damaged_zip_is_rejected(write_zip: WriteZip, images: Images) -> None:
    archive = write_zip(images)
    whole = archive.read_bytes()
    for content in (b"", b"not a zip", b"PK\3\4", whole[:-30]):
        archive.write_bytes(content)
        rejected(archive, r"animals\.zip: not a zip file, or a damaged one")
    flipped = bytearray(whole)
    flipped[whole.index(images["train/cat/2.png"]) + 50] ^= 1
    archive.write_bytes(flipped)
    rejected(archive, r"train/cat/2\.png cannot be unpacked .*Bad CRC-32")


def decodings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The images that Pillow opens from now on."""
    opened: list[object] = []
    real = Image.open

    def counting(file: io.BytesIO) -> Image.Image:
        opened.append(file)
        return real(file)

    monkeypatch.setattr(Image, "open", counting)
    return opened


@pytest.mark.parametrize("as_zip", [True, False])
def test_images_are_decoded_once(
    write_folder: WriteFolder, write_zip: WriteZip, images: Images, monkeypatch: pytest.MonkeyPatch, as_zip: bool
) -> None:
    path = write_zip(images) if as_zip else write_folder(images)
    opened = decodings(monkeypatch)
    first = open_dataset(str(path))
    assert len(opened) == 7
    second = open_dataset(str(path))
    assert len(opened) == 7
    assert (second.digest, second.name, second.uri) == (first.digest, "animals", str(path))


def test_the_cache_of_a_zip_does_not_depend_on_its_path(
    write_zip: WriteZip, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_dataset(str(write_zip(images)))
    moved = shutil.move(tmp_path / "animals.zip", tmp_path / "pets.zip")
    opened = decodings(monkeypatch)
    assert open_dataset(str(moved)).name == "pets"
    assert not opened


@pytest.mark.parametrize("change", ["touched", "added", "renamed"])
def test_a_changed_directory_is_decoded_again(write_folder: WriteFolder, images: Images, change: str) -> None:
    root = write_folder(images)
    before = open_dataset(str(root)).digest
    image = root / "train" / "cat" / "0.png"
    if change == "touched":
        size = image.stat().st_size
        seed = next(seed for seed in range(100, 10_000) if len(png(5, 4, seed)) == size)
        image.write_bytes(png(5, 4, seed))
        os.utime(image, ns=(0, 12_345))
    elif change == "added":
        (root / "train" / "cat" / "9.png").write_bytes(png(5, 4, 9))
    else:
        image.rename(root / "train" / "dog" / "9.png")
    assert open_dataset(str(root)).digest != before


@pytest.mark.parametrize("damage", ["a flipped byte", "intact, but other pixels"])
def test_a_damaged_cache_is_replaced(
    write_zip: WriteZip, images: Images, cache_dir: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    archive = str(write_zip(images))
    whole = open_dataset(archive)
    (file,) = cache_dir.iterdir()
    if damage == "a flipped byte":
        content = bytearray(file.read_bytes())
        content[content.index(whole.train_images.numpy().tobytes()) + 1] ^= 1
        file.write_bytes(content)
    else:
        with np.load(file) as arrays:
            changed = dict(arrays)
        changed["train_images"][0, 0, 0, 0] ^= 1
        np.savez(file, **changed)
    assert open_dataset(archive).digest == read_prepared(file).digest == whole.digest
    assert damage == "a flipped byte" or f"expected {whole.digest[:8]}" in caplog.text


def test_folders_may_be_links_even_to_a_parent(write_folder: WriteFolder, images: Images, tmp_path: Path) -> None:
    root = write_folder(images)
    plain = open_dataset(str(root)).digest
    (root / "loop").symlink_to(root)
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
