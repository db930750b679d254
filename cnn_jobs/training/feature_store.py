"""Where the features of a frozen backbone are kept: in memory, or in a file that outlives the process.

A store holds the features of all images of a data set, training images first, laid out (N, H, W, C): a batch is then in
channels_last, the fastest format for convolutions. Its ``missing`` are the numbers of the chunks yet to be written.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cnn_jobs.errors import from_os_error
from cnn_jobs.recipe import digest_of
from cnn_jobs.system.files import make_folder, write_text

INDEX_INTERVAL_S = 1.0


@dataclass(frozen=True)
class FeatureKey:
    """Everything that decides the features' bits: ``facts`` (backbone, transform, data, device, threads, torch), and
    the ``count`` of images, the features' ``shape`` (C, H, W) and type, and the images of a ``chunk``."""

    facts: Mapping[str, Any]
    count: int
    shape: tuple[int, int, int]
    dtype: torch.dtype
    chunk: int

    @property
    def name(self) -> str:
        """16 hex digits, for file names."""
        content = {**self.facts, "count": self.count, "shape": self.shape, "dtype": str(self.dtype)}
        return digest_of({**content, "chunk": self.chunk})[:16]

    @property
    def chunks(self) -> int:
        """Number of chunks; the last may be smaller."""
        return -(-self.count // self.chunk)

    @property
    def image_bytes(self) -> int:
        """Size of one image's features."""
        channels, height, width = self.shape
        return channels * height * width * self.dtype.itemsize

    @property
    def total_bytes(self) -> int:
        """Size of all features."""
        return self.count * self.image_bytes


class MemoryFeatures:
    """Features in one tensor."""

    def __init__(self, key: FeatureKey, device: torch.device) -> None:
        channels, height, width = key.shape
        self.key = key
        self.missing = list(range(key.chunks))
        self._features = torch.empty(key.count, height, width, channels, dtype=key.dtype, device=device)

    def read(self, indices: torch.Tensor) -> torch.Tensor:
        """Features (B, C, H, W) of the images ``indices`` (B,)."""
        return self._features.index_select(0, indices.to(self._features.device)).permute(0, 3, 1, 2)

    def write(self, number: int, features: torch.Tensor) -> None:
        """Stores chunk ``number``, (B, C, H, W)."""
        first = number * self.key.chunk
        self._features[first : first + len(features)] = features.permute(0, 2, 3, 1)
        self.missing.remove(number)

    def flush(self) -> None:
        """Nothing outlives the process."""


class DiskFeatures:
    """Features in ``<name>.features``, read through a memory map, with the CRC-32 of every chunk in ``<name>.json``.

    One writer at a time: the caller holds a lock. Call ``check`` first. ``seconds``: device seconds that went into what
    was found, by run key.
    """

    def __init__(self, key: FeatureKey, folder: Path) -> None:
        """Raises ``DiskFullError`` or ``StateDirError`` where the file cannot be created."""
        self.key = key
        self._path, self._index = folder / f"{key.name}.features", folder / f"{key.name}.json"
        self._mapped: torch.Tensor | None = None
        self._flushed = time.monotonic()
        make_folder(folder)
        content = self._read_index()
        self._sums: dict[int, int] = {int(number): crc for number, crc in content.get("crc32", {}).items()}
        self.seconds: dict[str, float] = content.get("seconds", {})
        try:
            with self._path.open("ab") as stream:
                stream.truncate(key.total_bytes)
        except OSError as error:
            raise from_os_error(error, self._path) from error
        self.missing = list(range(key.chunks))

    def check(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Reads the file: a chunk that differs from what was written is missing again. ``False`` where ``should_stop``
        was true before the end."""
        intact: dict[int, int] = {}
        for number, crc in self._sums.items():
            if should_stop():
                return False
            try:
                if self._crc(number) == crc:
                    intact[number] = crc
            except OSError as error:
                raise from_os_error(error, self._path) from error
        self._sums = intact
        self.missing = [number for number in range(self.key.chunks) if number not in intact]
        return True

    @staticmethod
    def bytes_there(key: FeatureKey, folder: Path) -> int:
        """Size of the key's file, where an index lists computed features; else 0."""
        try:
            (folder / f"{key.name}.json").stat()
            return (folder / f"{key.name}.features").stat().st_size
        except OSError:
            return 0

    def read(self, indices: torch.Tensor) -> torch.Tensor:
        """Features (B, C, H, W) of the images ``indices`` (B,)."""
        if self._mapped is None:
            channels, height, width = self.key.shape
            # Shared: the kernel refuses a private map larger than the memory. Nothing is ever written through it.
            flat = torch.from_file(
                str(self._path), shared=True, size=self.key.count * channels * height * width, dtype=self.key.dtype
            )
            self._mapped = flat.view(self.key.count, height, width, channels)
        return self._mapped.index_select(0, indices.cpu()).permute(0, 3, 1, 2)

    def write(self, number: int, features: torch.Tensor) -> None:
        """Stores chunk ``number``, (B, C, H, W). Raises ``DiskFullError`` or ``StateDirError``."""
        # Not through the map: on a full disk that would be a SIGBUS.
        data = features.permute(0, 2, 3, 1).contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
        try:
            with self._path.open("rb+") as stream:
                stream.seek(number * self.key.chunk * self.key.image_bytes)
                stream.write(data.data)
        except OSError as error:
            raise from_os_error(error, self._path) from error
        self._sums[number] = zlib.crc32(data.data)
        self.missing.remove(number)
        if time.monotonic() - self._flushed > INDEX_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Writes the index, so that the next process finds the chunks."""
        content = {"facts": dict(self.key.facts), "seconds": self.seconds, "crc32": self._sums}
        write_text(self._index, json.dumps(content) + "\n")
        self._flushed = time.monotonic()

    def _read_index(self) -> dict[str, Any]:
        try:
            content = json.loads(self._index.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # missing or damaged: everything is computed again
            return {}
        return content if isinstance(content, dict) and isinstance(content.get("crc32"), dict) else {}

    def _crc(self, number: int) -> int | None:
        """Of a chunk as it is in the file; ``None`` where there is no such chunk."""
        if not 0 <= number < self.key.chunks:
            return None
        first = number * self.key.chunk
        size = min(self.key.chunk, self.key.count - first) * self.key.image_bytes
        with self._path.open("rb") as stream:
            return zlib.crc32(os.pread(stream.fileno(), size, first * self.key.image_bytes))


FeatureStore = MemoryFeatures | DiskFeatures
