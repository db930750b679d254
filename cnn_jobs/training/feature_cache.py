"""The frozen trunk's pass over all images: whether its features are kept, where, and that it is done once."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from cnn_jobs.data.batches import Examples, ImageSet, Parts, TrainingData
from cnn_jobs.errors import UserError, from_os_error
from cnn_jobs.models.resnet import Backbone
from cnn_jobs.recipe import digest_of
from cnn_jobs.runs.cost import RunCost
from cnn_jobs.runs.setup import Run
from cnn_jobs.system import environment
from cnn_jobs.system.files import make_folder, write_text
from cnn_jobs.system.lock import try_lock
from cnn_jobs.training.device import available_memory
from cnn_jobs.training.evaluation import precision_context
from cnn_jobs.training.observer import Phase, Watcher

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


FEATURE_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Images at a time in the pass over all of them: the same on every attempt, for it decides the last bits.
CHUNK = {"cpu": 50, "cuda": 500}


class FeatureStore(Protocol):
    """Features of the images of a data set, training images first, in chunks of ``chunk`` images.

    ``missing``: numbers of the chunks that are not there yet.
    """

    chunk: int
    missing: list[int]

    def read(self, indices: torch.Tensor) -> torch.Tensor:
        """Features (B, C, H, W) of the images ``indices`` (B,)."""

    def write(self, number: int, features: torch.Tensor) -> None:
        """Keeps a chunk, (B, C, H, W). Raises ``DiskFullError`` or ``StateDirError``."""

    def flush(self) -> None:
        """What was written so far is found again by whoever goes on."""


@dataclass(frozen=True)
class FeatureSet(Examples):
    """The features of a part's images. ``first``: place of the images' first one in the ``store``.

    Without a store, and for augmented images, the trunk computes them anew.
    """

    source: ImageSet
    trunk: Backbone
    precision: str
    store: FeatureStore | None = None
    first: int = 0

    @property
    def images(self) -> torch.Tensor:  # type: ignore[override]
        """(N, 3, H, W) uint8, the images themselves."""
        return self.source.images

    @property
    def labels(self) -> torch.Tensor:  # type: ignore[override]
        """(N,) int64."""
        return self.source.labels

    @property
    def indices(self) -> torch.Tensor:  # type: ignore[override]
        """(M,) int64, the part."""
        return self.source.indices

    def batch(
        self, positions: torch.Tensor, augmentation: str = "none", generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, C, H, W) and labels (B,) int64 of the part's ``positions`` (B,)."""
        if self.store is None or augmentation != "none":
            pixels, labels = self.source.batch(positions, augmentation, generator)
            return features_of(self.trunk, pixels, self.precision), labels
        chosen = self.source.indices[positions]
        return self.store.read(chosen + self.first).to(self.device), self.labels[chosen]

    def some(self, places: slice) -> FeatureSet:
        """The part's features at ``places``."""
        return replace(self, source=self.source.some(places))


def features_of(trunk: Backbone, pixels: torch.Tensor, precision: str) -> torch.Tensor:
    """Features (B, C, H, W) of normalised images, in the precision's own type."""
    # Not inference mode: what the layers behind it learn from must be fit for autograd.
    with torch.no_grad(), precision_context(precision, pixels.device):
        features: torch.Tensor = trunk(pixels)
    return features.to(FEATURE_TYPES[precision])


def with_features(data: Parts[ImageSet], trunk: Backbone, precision: str, store: FeatureStore | None) -> TrainingData:
    """The three parts, as the layers behind ``trunk`` take them."""

    def part(source: ImageSet, first: int = 0) -> FeatureSet:
        return FeatureSet(source, trunk, precision, store, first)

    return Parts(part(data.train), part(data.validation), part(data.test, len(data.train.images)))


def fill(
    store: FeatureStore,
    data: Parts[ImageSet],
    trunk: Backbone,
    precision: str,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_chunk: Callable[[int], object] = lambda images: None,
) -> bool:
    """Computes the chunks that are missing, in order; whether it came to the end before ``should_stop`` said yes.

    ``on_chunk`` hears of each how many images it holds.
    """
    images = len(data.train.images) + len(data.test.images)
    for number in list(store.missing):
        if should_stop():
            store.flush()
            return False
        places = torch.arange(number * store.chunk, min((number + 1) * store.chunk, images), device=data.train.device)
        store.write(number, features_of(trunk, _pixels(data, places), precision))
        on_chunk(len(places))
    store.flush()
    return True


def _pixels(data: Parts[ImageSet], places: torch.Tensor) -> torch.Tensor:
    """Normalised images at ``places`` of training and test images in one row."""
    train, test = data.train.whole(), data.test.whole()
    border = len(train)
    parts = [train.batch(places[places < border])[0], test.batch(places[places >= border] - border)[0]]
    return torch.cat([part for part in parts if len(part)])


MODES = ("auto", "memory", "disk", "off")
# Shares of what is free that "auto" takes: the training, and others, need the rest.
MEMORY_SHARE, DISK_SHARE = 0.5, 0.9
# Beside the runs' folders, whose names begin with a letter or digit: runs of other seeds need the same features.
FOLDER = "_features"
TELL_EVERY_S = 15.0
COMPUTED_ONCE, COMPUTED_AT_EACH_STEP = "computed once", "computed at each step"

# The features of the last run in this process: the next seed of a series needs the same.
_kept: list[MemoryFeatures] = []


@dataclass(frozen=True)
class FeaturePlan:
    """Where the features of ``trunk`` are kept: ``memory``, ``disk`` or ``off``; ``why``, where that needs a word."""

    trunk: Backbone
    key: FeatureKey
    mode: str
    why: str = ""

    @property
    def kept(self) -> str:
        """Whether they are kept, in words: it decides the last bits of a training."""
        return COMPUTED_AT_EACH_STEP if self.mode == "off" else COMPUTED_ONCE

    @property
    def text(self) -> str:
        """For a person."""
        size = f"{_size(self.key.total_bytes)} for {self.key.count:,} images"
        return f"{self.mode}{f', {size}' if self.mode != 'off' else ''}{f' ({self.why})' if self.why else ''}"


def plan_features(run: Run, trunk: Backbone, data: Parts[ImageSet]) -> FeaturePlan:
    """Decides by the options, and for ``auto`` by what is free. Raises ``UserError`` where ``memory`` has no room."""
    device, dataset = data.train.device, run.dataset
    facts = {
        "trunk": trunk.digest(),
        "side": trunk.side,
        "transform": run.task.transform.as_dict(),
        "data": dataset.digest,
        # Beside what they are of, what decides their last bits.
        "device": environment.device_name(device),
        "threads": run.threads,
        "torch": environment.version_of("torch"),
        "fast": run.options.fast,
    }
    count = len(dataset.train_images) + len(dataset.test_images)
    dtype = FEATURE_TYPES[run.recipe.precision]
    key = FeatureKey(facts, count, trunk.feature_shape, dtype, CHUNK[device.type])
    wanted = run.options.trunk_cache
    if run.recipe.augmentation != "none":
        why = f"augmentation is {run.recipe.augmentation}: no image is the same twice"
        return FeaturePlan(trunk, key, "off", why)
    _kept[:] = [store for store in _kept if store.key.name == key.name]  # those of another key are in the way
    memory = sys.maxsize if _kept else available_memory(device)
    if wanted == "memory" and key.total_bytes > memory:
        raise UserError(
            f"--trunk-cache memory: the features need {_size(key.total_bytes)}, {_size(memory)} are free; "
            "use --trunk-cache auto, disk or off"
        )
    if wanted != "auto":
        return FeaturePlan(trunk, key, wanted)
    return FeaturePlan(trunk, key, *_choose(key, memory, run.options.state_dir))


def _choose(key: FeatureKey, memory: int, state_dir: Path) -> tuple[str, str]:
    """Mode, and why, for ``auto``. What lies on the disk already is taken from there."""
    folder = state_dir / FOLDER
    there = DiskFeatures.bytes_there(key, folder)
    if there and memory < sys.maxsize:
        return "disk", ""
    if key.total_bytes <= MEMORY_SHARE * memory:
        return "memory", ""
    if key.total_bytes <= DISK_SHARE * shutil.disk_usage(make_folder(state_dir)).free:
        return "disk", f"{_size(memory)} of memory are free"
    return "off", f"{_size(key.total_bytes)} fit neither into {_size(memory)} of free memory nor on the disk"


def features_of_run(
    run: Run,
    plan: FeaturePlan,
    data: Parts[ImageSet],
    watcher: Watcher,
    should_stop: Callable[[], bool],
    book: RunCost | None = None,
    *,
    resumed: bool = False,
) -> TrainingData | None:
    """The data as the trained layers take them; ``None`` where ``should_stop`` said yes before all was computed.

    ``resumed``: the training goes on from a checkpoint, so that an earlier attempt had the features. Raises
    ``DiskFullError`` or ``StateDirError``.
    """
    if plan.why:
        watcher.warn(f"trunk cache {plan.text}")
    if plan.mode == "off":
        return with_features(data, plan.trunk, run.recipe.precision, None)
    store: MemoryFeatures | DiskFeatures
    if plan.mode == "memory":
        store = _in_memory(plan.key) or MemoryFeatures(plan.key, data.train.device)
        _kept[:] = [store]
        done = _fill(run, plan, store, data, watcher, should_stop, resumed=resumed)
    else:
        with _only_writer(run.options.state_dir / FOLDER, plan.key, watcher, should_stop) as folder:
            if folder is None:
                return None
            watcher.phase(Phase.FEATURES, "checking what there is of the trunk's features")
            store = on_disk = DiskFeatures(plan.key, folder)
            if not store.check(should_stop):
                return None
            if book and not resumed:  # else the checkpoint's own account has them
                book.useful_device_seconds += on_disk.seconds.get(run.key, 0.0)
            done = _fill(run, plan, store, data, watcher, should_stop, resumed=resumed)
    return with_features(data, plan.trunk, run.recipe.precision, store) if done else None


def _fill(
    run: Run,
    plan: FeaturePlan,
    store: MemoryFeatures | DiskFeatures,
    data: Parts[ImageSet],
    watcher: Watcher,
    should_stop: Callable[[], bool],
    *,
    resumed: bool,
) -> bool:
    ledger, total = run.ledger, plan.key.count
    there = total - sum(min(store.chunk, total - number * store.chunk) for number in store.missing)
    mark = told = time.perf_counter()

    def tell(images: int) -> None:
        nonlocal there, mark, told
        now = time.perf_counter()
        seconds, mark, there = now - mark, now, there + images
        ledger.feature_seconds += seconds
        ledger.repeated_seconds += seconds if resumed else 0.0
        if isinstance(store, DiskFeatures):
            store.seconds[run.key] = store.seconds.get(run.key, 0.0) + seconds
        if now - told > TELL_EVERY_S:
            told = now
            watcher.phase(Phase.FEATURES, f"frozen trunk: {there:,} of {total:,} images")

    if store.missing:
        watcher.phase(Phase.FEATURES, f"frozen trunk: {there:,} of {total:,} images; features kept: {plan.text}")
    return fill(store, data, plan.trunk, run.recipe.precision, should_stop=should_stop, on_chunk=tell)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _in_memory(key: FeatureKey) -> MemoryFeatures | None:
    return next((store for store in _kept if store.key.name == key.name), None)


@contextmanager
def _only_writer(
    folder: Path, key: FeatureKey, watcher: Watcher, should_stop: Callable[[], bool]
) -> Iterator[Path | None]:
    """Waits until no other process computes these features; ``None`` where ``should_stop`` says yes before."""
    path = make_folder(folder) / f"{key.name}.lock"
    told = False
    while (descriptor := try_lock(path)) is None:
        if should_stop():
            yield None
            return
        if not told:
            watcher.phase(Phase.FEATURES, "another process computes the trunk's features: waiting for it")
            told = True
        time.sleep(0.2)
    try:
        yield folder
    finally:
        os.close(descriptor)
