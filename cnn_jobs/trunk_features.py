"""The frozen trunk's pass over all images: whether its features are kept, where, and that it is done once."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cnn_jobs.cost_book import CostBook
from cnn_jobs.data.batches import ImageSet, Parts, TrainingData
from cnn_jobs.errors import UserError
from cnn_jobs.files import make_folder
from cnn_jobs.lock import try_lock
from cnn_jobs.models.resnet import Trunk
from cnn_jobs.run import Run
from cnn_jobs.tracking import lineage
from cnn_jobs.training.device import available_memory
from cnn_jobs.training.features import CHUNK, FEATURE_TYPES, fill, with_features
from cnn_jobs.training.trunk_cache import DiskFeatures, FeatureKey, MemoryFeatures
from cnn_jobs.watcher import Phase, Watcher

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

    trunk: Trunk
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


def plan_features(run: Run, trunk: Trunk, data: Parts[ImageSet]) -> FeaturePlan:
    """Decides by the options, and for ``auto`` by what is free. Raises ``UserError`` where ``memory`` has no room."""
    device, dataset = data.train.device, run.dataset
    facts = {
        "trunk": trunk.digest(),
        "side": trunk.side,
        "transform": run.task.transform.as_dict(),
        "data": dataset.digest,
        # Beside what they are of, what decides their last bits.
        "device": lineage.device_name(device),
        "threads": run.threads,
        "torch": lineage.version_of("torch"),
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
    book: CostBook | None = None,
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
