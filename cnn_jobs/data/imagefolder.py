"""Pictures in class folders, as a directory or a ``.zip``: decoded once, then read from the cache."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import cached
from cnn_jobs.errors import DataError, InterruptedRunError

SPLITS = ("train", "test")
SUFFIXES = (".png", ".jpg", ".jpeg")
LAYOUT = "train/<class>/*.png|jpg|jpeg and test/<class>/..."

# What Pillow turns into eight-bit RGB without clipping; 16-bit and float pictures it would clip.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")

_Read = Callable[[str], bytes]
_Classes = dict[str, list[str]]


def open_imagefolder(path: Path, *, uri: str, cache_dir: Path) -> Dataset:
    """The data set in a directory or zip of ``train/<class>/*.png|jpg|jpeg`` and ``test/<class>/...``.

    Classes and files are taken in the order of their names; grey, palette and transparent pictures become
    RGB. The decoded set is kept in ``cache_dir``. Raises ``DataError`` (exit 2), which names the file, where
    the layout is another one, a class is empty, a picture cannot be decoded or has another size than the
    first.
    """
    try:
        key = _stat_digest(path) if path.is_dir() else _file_digest(path)
    except OSError as error:
        raise DataError(f"{uri}: cannot be read ({error.strerror or error}); check the path") from error
    name = Path(uri).name if path.is_dir() else Path(uri).stem
    if name in ("", ".."):  # '.' has no name, and neither says which directory it is
        name = path.resolve().name
    decode = _decode_directory if path.is_dir() else _decode_zip
    return cached(cache_dir / f"decoded-{key}.npz", lambda: decode(path, uri, name), name=name, uri=uri)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stat_digest(root: Path) -> str:
    """A digest over where the directory is, and path, size and time of change of every file in it.

    Not over the contents: to read tens of thousands of small files takes as long as to decode them, which is
    what the cache is there to save. A file changed in place, to the same size and with its old time, goes
    unnoticed.
    """
    digest = hashlib.sha256(os.fsencode(root.resolve()))
    for name in sorted(_walk(root)):
        status = (root / name).stat()
        digest.update(f"\0{name}\0{status.st_size}\0{status.st_mtime_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _walk(root: Path) -> list[str]:
    """Relative names of all files, and of all directories with a slash at the end, as a zip lists them."""
    names = []
    for directory, folders, files in os.walk(root, followlinks=True):
        below = Path(directory).relative_to(root)
        names += [(below / folder).as_posix() + "/" for folder in folders]
        names += [(below / file).as_posix() for file in files]
        if len(below.parts) == 2:
            folders.clear()  # nothing that counts lies deeper, and a link to a parent would never end
    return names


def _decode_directory(root: Path, uri: str, name: str) -> Dataset:
    return _decode(_walk(root), lambda file: (root / file).read_bytes(), uri, name)


def _decode_zip(path: Path, uri: str, name: str) -> Dataset:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            top = _enclosing_folder(names)
            inner = [entry.removeprefix(top) for entry in names]
            return _decode(inner, lambda file: archive.read(top + file), uri, name)
    except zipfile.BadZipFile as error:
        raise DataError(f"{uri}: not a zip file, or a damaged one ({error}); make or download it again") from error


def _enclosing_folder(names: list[str]) -> str:
    """``cifar/`` where everything that counts lies in ``cifar/``, else an empty string."""
    tops = {name.split("/", 1)[0] for name in names if not _hidden(name)}
    return f"{tops.pop()}/" if len(tops) == 1 and not tops & set(SPLITS) else ""


def _hidden(name: str) -> bool:
    """True for what operating systems add unasked: ``.DS_Store``, ``__MACOSX/``."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _decode(names: Iterable[str], read: _Read, uri: str, name: str) -> Dataset:
    folders = _listing(names, uri)
    classes, test_classes = (sorted(folders[split]) for split in SPLITS)
    if classes != test_classes:
        odd = ", ".join(sorted(set(classes) ^ set(test_classes)))
        raise DataError(f"{uri}: train/ and test/ must have the same class folders; only one has {odd}")
    first: list[tuple[str, tuple[int, int]]] = []
    train, test = (_pictures(folders[split], read, uri, first) for split in SPLITS)
    return Dataset.from_arrays(name=name, uri=uri, classes=classes, train=train, test=test)


def _listing(names: Iterable[str], uri: str) -> dict[str, _Classes]:
    """Split -> class -> sorted picture files, each checked to have some."""
    folders: dict[str, _Classes] = {split: {} for split in SPLITS}
    for name in names:
        split, *rest = name.split("/")
        if split not in folders or _hidden(name):
            continue
        if len(rest) >= 2:
            folders[split].setdefault(rest[0], [])
        if name.lower().endswith(SUFFIXES):
            if len(rest) != 2:
                raise DataError(f"{uri}: {name} lies outside a class folder; the layout is {LAYOUT}")
            folders[split][rest[0]].append(name)
    for split, classes in folders.items():
        if not classes:
            raise DataError(f"{uri}: has no class folders in {split}/; the layout is {LAYOUT}")
        for folder, files in classes.items():
            if not files:
                raise DataError(f"{uri}: class folder {split}/{folder} has no {', '.join(SUFFIXES)}; fill or remove it")
            files.sort()
    return folders


def _pictures(
    classes: _Classes, read: _Read, uri: str, first: list[tuple[str, tuple[int, int]]]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images (N, 3, H, W) and labels (N,) of one split; ``first`` is the picture that sets all sizes."""
    files = [(file, label) for label, folder in enumerate(sorted(classes)) for file in classes[folder]]
    images: npt.NDArray[Any] | None = None
    for row, (file, _) in enumerate(files):
        pixels = _pixels(read, file, uri)
        size = (pixels.shape[1], pixels.shape[0])
        if not first:
            first.append((file, size))
        if size != first[0][1]:
            (other, expected) = first[0]
            raise DataError(
                f"{uri}: {file} is {size[0]}x{size[1]}, but {other} is {expected[0]}x{expected[1]}; "
                "bring all pictures to one size"
            )
        if images is None:
            images = np.empty((len(files), 3, *pixels.shape[:2]), dtype=np.uint8)
        images[row] = pixels.transpose(2, 0, 1)
    assert images is not None  # no class is empty
    return images, np.array([label for _, label in files], dtype=np.int64)


def _pixels(read: _Read, file: str, uri: str) -> npt.NDArray[np.uint8]:
    """One picture as (H, W, 3) uint8."""
    try:
        with Image.open(io.BytesIO(read(file))) as picture:
            if picture.mode in _MODES:
                return np.asarray(picture.convert("RGB"))
            mode = picture.mode
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{uri}: {file} cannot be unpacked ({error}); make or download it again") from error
    except InterruptedRunError:
        raise
    except Exception as error:  # Pillow lets whatever its decoders meet through: SyntaxError, struct.error, ...
        reason = "not a picture" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{uri}: {file} cannot be decoded ({reason}); replace or remove it") from error
    raise DataError(f"{uri}: {file} has mode {mode}, but only 8-bit pictures are taken ({', '.join(_MODES)})")
