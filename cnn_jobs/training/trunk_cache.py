"""Where the features of a frozen trunk are kept: in memory, or in a file that outlives the process."""

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
from cnn_jobs.files import make_folder, write_text
from cnn_jobs.recipe import digest_of

INDEX_INTERVAL_S = 1.0


@dataclass(frozen=True)
class FeatureKey:
    """All that decides the features' bits: trunk, transform, data, type; and chunk, device, threads, torch.

    ``count`` images with features of ``shape`` (C, H, W).
    """

    facts: Mapping[str, Any]
    count: int
    shape: tuple[int, int, int]
    dtype: torch.dtype
    chunk: int

    @property
    def name(self) -> str:
        """Short enough for a file, long enough to be unique."""
        content = {**self.facts, "count": self.count, "shape": self.shape, "dtype": str(self.dtype)}
        return digest_of({**content, "chunk": self.chunk})[:16]

    @property
    def chunks(self) -> int:
        """How many there are; the last may be smaller."""
        return -(-self.count // self.chunk)

    @property
    def image_bytes(self) -> int:
        """Memory of one image's features."""
        channels, height, width = self.shape
        return channels * height * width * self.dtype.itemsize

    @property
    def total_bytes(self) -> int:
        """Memory of them all."""
        return self.count * self.image_bytes


class MemoryFeatures:
    """Features in one tensor, laid out (N, H, W, C): a batch of it is in channels_last, as convolutions like it."""

    def __init__(self, key: FeatureKey, device: torch.device) -> None:
        channels, height, width = key.shape
        self.key, self.chunk = key, key.chunk
        self.missing = list(range(key.chunks))
        self._features = torch.empty(key.count, height, width, channels, dtype=key.dtype, device=device)

    def read(self, indices: torch.Tensor) -> torch.Tensor:
        """Features (B, C, H, W) of the images ``indices`` (B,)."""
        return self._features.index_select(0, indices.to(self._features.device)).permute(0, 3, 1, 2)

    def write(self, number: int, features: torch.Tensor) -> None:
        """Keeps a chunk, (B, C, H, W)."""
        first = number * self.chunk
        self._features[first : first + len(features)] = features.permute(0, 2, 3, 1)
        self.missing.remove(number)

    def flush(self) -> None:
        """Nothing outlives the process."""


class DiskFeatures:
    """Features in ``<name>.features``, read through a memory map, with the CRC-32 of every chunk in ``<name>.json``.

    For one writer at a time (the caller holds a lock). ``seconds``: device seconds that went into what was found, by
    run key. Call ``check`` before anything else.
    """

    def __init__(self, key: FeatureKey, folder: Path) -> None:
        """Raises ``DiskFullError`` or ``StateDirError`` where the file cannot be made."""
        self.key, self.chunk = key, key.chunk
        self._path, self._index = folder / f"{key.name}.features", folder / f"{key.name}.json"
        self._mapped: torch.Tensor | None = None
        self._written = time.monotonic()
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
        """Reads what is there: a chunk that is not as it was written is missing again. Whether it came to the end
        before ``should_stop`` said yes."""
        whole: dict[int, int] = {}
        for number, crc in self._sums.items():
            if should_stop():
                return False
            try:
                if self._crc(number) == crc:
                    whole[number] = crc
            except OSError as error:
                raise from_os_error(error, self._path) from error
        self._sums = whole
        self.missing = [number for number in range(self.key.chunks) if number not in whole]
        return True

    @staticmethod
    def bytes_there(key: FeatureKey, folder: Path) -> int:
        """Of the key's file, as far as an index says that somebody computed them; 0 for none."""
        try:
            (folder / f"{key.name}.json").stat()
            return (folder / f"{key.name}.features").stat().st_size
        except OSError:
            return 0

    def read(self, indices: torch.Tensor) -> torch.Tensor:
        """Features (B, C, H, W) of the images ``indices`` (B,)."""
        if self._mapped is None:
            channels, height, width = self.key.shape
            # Shared: a private map of a file larger than the memory is refused. Nothing is ever written through it.
            flat = torch.from_file(
                str(self._path), shared=True, size=self.key.count * channels * height * width, dtype=self.key.dtype
            )
            self._mapped = flat.view(self.key.count, height, width, channels)
        return self._mapped.index_select(0, indices.cpu()).permute(0, 3, 1, 2)

    def write(self, number: int, features: torch.Tensor) -> None:
        """Keeps a chunk, (B, C, H, W). Raises ``DiskFullError`` or ``StateDirError``."""
        # Written, not copied into the map: on a full disk that would be a SIGBUS.
        data = features.permute(0, 2, 3, 1).contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
        try:
            with self._path.open("rb+") as stream:
                stream.seek(number * self.chunk * self.key.image_bytes)
                stream.write(data.data)
        except OSError as error:
            raise from_os_error(error, self._path) from error
        self._sums[number] = zlib.crc32(data.data)
        self.missing.remove(number)
        if time.monotonic() - self._written > INDEX_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Writes the index: what it names is found again."""
        content = {"facts": dict(self.key.facts), "seconds": self.seconds, "crc32": self._sums}
        write_text(self._index, json.dumps(content) + "\n")
        self._written = time.monotonic()

    def _read_index(self) -> dict[str, Any]:
        try:
            content = json.loads(self._index.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none yet, or damaged: all is computed
            return {}
        return content if isinstance(content, dict) and isinstance(content.get("crc32"), dict) else {}

    def _crc(self, number: int) -> int | None:
        """Of a chunk as the file has it; ``None`` for one that cannot be."""
        first = number * self.chunk
        size = min(self.chunk, self.key.count - first) * self.key.image_bytes
        if not 0 <= number < self.key.chunks:
            return None
        with self._path.open("rb") as stream:
            return zlib.crc32(os.pread(stream.fileno(), size, first * self.key.image_bytes))
