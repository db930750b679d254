"""Images in class folders, as a directory or a ``.zip``: decoded once, then read from the cache."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from cnn_jobs.data.dataset import SPLITS, Dataset
from cnn_jobs.data.prepared import cached
from cnn_jobs.errors import DataError, InterruptedRunError
from cnn_jobs.system.files import sha256_of

SUFFIXES = (".png", ".jpg", ".jpeg")
LAYOUT = "train/<class>/*.png|jpg|jpeg and test/<class>/..."

# Modes that Pillow converts to eight-bit RGB without clipping, as it would clip 16-bit and float images.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")

_Read = Callable[[str], bytes]


def open_imagefolder(path: Path, *, uri: str, cache_dir: Path) -> Dataset:
    """The data set in a directory or zip of ``train/<class>/*.png|jpg|jpeg`` and ``test/<class>/...``.

    Classes and files are sorted by name; grey, palette and transparent images become RGB. The decoded set is kept in
    ``cache_dir``. Raises ``DataError`` (exit 2) with the file's name for another layout, an empty class, and an image
    that cannot be decoded or is of another size than the first.
    """
    is_folder = path.is_dir()
    try:
        key = _folder_digest(path) if is_folder else sha256_of(path)
    except OSError as error:
        raise DataError(f"{uri}: cannot be read ({error.strerror or error}); check the path") from error
    name = Path(uri).name if is_folder else Path(uri).stem
    if name in ("", ".."):  # of '.' and '..'
        name = path.resolve().name
    decode = _decode_folder if is_folder else _decode_zip
    return cached(cache_dir / f"decoded-{key}.npz", lambda: decode(path, uri, name), name=name, uri=uri)


def _folder_digest(root: Path) -> str:
    """A digest over the directory's path, and the path, size and modification time of every file in it.

    Not over the contents: reading tens of thousands of small files takes as long as decoding them, which the cache
    saves. A file that is changed in place, to the same size and with its old time, is not noticed.
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
            folders.clear()  # deeper files do not count, and a link to a parent would never end
    return names


def _decode_folder(root: Path, uri: str, name: str) -> Dataset:
    return _decode(_walk(root), lambda file: (root / file).read_bytes(), uri, name)


def _decode_zip(path: Path, uri: str, name: str) -> Dataset:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            folders = {entry.split("/", 1)[0] for entry in names if not _is_hidden(entry)}
            # All may lie in one folder, as in cifar/train/...
            prefix = f"{folders.pop()}/" if len(folders) == 1 and not folders & set(SPLITS) else ""
            inner = [entry.removeprefix(prefix) for entry in names]
            return _decode(inner, lambda file: archive.read(prefix + file), uri, name)
    except zipfile.BadZipFile as error:
        raise DataError(f"{uri}: not a zip file, or a damaged one ({error}); make or download it again") from error


def _is_hidden(name: str) -> bool:
    """Whether an operating system made it: ``.DS_Store``, ``__MACOSX/``."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _decode(names: Iterable[str], read: _Read, uri: str, name: str) -> Dataset:
    folders = _listing(names, uri)
    classes, test_classes = (sorted(folders[split]) for split in SPLITS)
    if classes != test_classes:
        odd = ", ".join(sorted(set(classes) ^ set(test_classes)))
        raise DataError(f"{uri}: train/ and test/ must have the same class folders; only one has {odd}")
    files = [file for split in SPLITS for folder in classes for file in folders[split][folder]]
    images = _images(files, read, uri)
    train, test = (
        np.repeat(np.arange(len(classes)), [len(folders[split][folder]) for folder in classes]) for split in SPLITS
    )
    return Dataset.from_arrays(
        name=name, uri=uri, classes=classes, train=(images[: len(train)], train), test=(images[len(train) :], test)
    )


def _listing(names: Iterable[str], uri: str) -> dict[str, dict[str, list[str]]]:
    """Split -> class -> sorted image files, at least one a class."""
    folders: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for name in names:
        split, *rest = name.split("/")
        if split not in folders or _is_hidden(name):
            continue
        if len(rest) >= 2:
            folders[split].setdefault(rest[0], [])
        if name.lower().endswith(SUFFIXES):
            if len(rest) != 2:
                raise DataError(f"{uri}: {name} is outside a class folder; the layout is {LAYOUT}")
            folders[split][rest[0]].append(name)
    for split, classes in folders.items():
        if not classes:
            raise DataError(f"{uri}: has no class folders in {split}/; the layout is {LAYOUT}")
        for folder, files in classes.items():
            if not files:
                raise DataError(f"{uri}: class folder {split}/{folder} has no {', '.join(SUFFIXES)}; fill or remove it")
            files.sort()
    return folders


def _images(files: list[str], read: _Read, uri: str) -> npt.NDArray[np.uint8]:
    """The decoded ``files``, (N, 3, H, W); the first one decides the size."""
    first = _pixels(read, files[0], uri)
    images = np.empty((len(files), 3, *first.shape[:2]), dtype=np.uint8)
    for row, file in enumerate(files):
        pixels = _pixels(read, file, uri) if row else first
        if pixels.shape != first.shape:
            raise DataError(
                f"{uri}: {file} is {pixels.shape[1]}x{pixels.shape[0]}, but {files[0]} is "
                f"{first.shape[1]}x{first.shape[0]}; bring all images to one size"
            )
        images[row] = pixels.transpose(2, 0, 1)
    return images


def _pixels(read: _Read, file: str, uri: str) -> npt.NDArray[np.uint8]:
    """One image as (H, W, 3) uint8."""
    try:
        with Image.open(io.BytesIO(read(file))) as image:
            if image.mode in _MODES:
                return np.asarray(image.convert("RGB"))
            mode = image.mode
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{uri}: {file} cannot be unpacked ({error}); make or download it again") from error
    except InterruptedRunError:
        raise
    except Exception as error:  # Pillow's decoders raise anything: SyntaxError, struct.error, ...
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{uri}: {file} cannot be decoded ({reason}); replace or remove it") from error
    raise DataError(f"{uri}: {file} has mode {mode}, but must be an 8-bit image ({', '.join(_MODES)})")
