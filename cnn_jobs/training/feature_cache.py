"""The features of a frozen backbone: computed once for all images, and kept in memory or on disk."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cnn_jobs.data.batches import Examples, ImageSet, Parts, TrainingData
from cnn_jobs.errors import UserError
from cnn_jobs.models.build import Backbone
from cnn_jobs.system.files import make_folder
from cnn_jobs.system.lock import try_lock
from cnn_jobs.training.device import available_memory
from cnn_jobs.training.evaluation import precision_context
from cnn_jobs.training.feature_store import DiskFeatures, FeatureKey, FeatureStore, MemoryFeatures
from cnn_jobs.training.loop import DeviceTime
from cnn_jobs.training.observer import Observer, Phase

FEATURE_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Images at a time in the pass over all of them. The same in every attempt: it decides the last bits.
CHUNK = {"cpu": 50, "cuda": 500}
# Shares of what is free that "auto" takes: the training, and others, need the rest.
MEMORY_SHARE, DISK_SHARE = 0.5, 0.9
# In the state directory, shared by runs with other seeds. Names of runs' folders begin with a letter or digit.
FOLDER = "_features"
PROGRESS_INTERVAL_S = 15.0
COMPUTED_ONCE, COMPUTED_AT_EACH_STEP = "computed once", "computed at each step"


@dataclass(frozen=True)
class FeatureSet(Examples):
    """The features of a part's images. ``first``: position of the part's data set in the ``store``.

    Without a store, and for augmented images, the backbone computes them at each step.
    """

    source: ImageSet
    backbone: Backbone
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
            return features_of(self.backbone, pixels, self.precision), labels
        chosen = self.source.indices[positions]
        return self.store.read(chosen + self.first).to(self.device), self.labels[chosen]

    def subset(self, positions: slice) -> FeatureSet:
        """The features at ``positions`` of the part."""
        return replace(self, source=self.source.subset(positions))


def features_of(backbone: Backbone, pixels: torch.Tensor, precision: str) -> torch.Tensor:
    """Features (B, C, H, W) of normalised images, in the precision's type."""
    # Not inference mode: the trained layers need tensors that autograd accepts.
    with torch.no_grad(), precision_context(precision, pixels.device):
        features: torch.Tensor = backbone(pixels)
    return features.to(FEATURE_TYPES[precision])


def with_features(
    data: Parts[ImageSet], backbone: Backbone, precision: str, store: FeatureStore | None
) -> TrainingData:
    """The three parts as inputs of the layers behind ``backbone``."""

    def part(source: ImageSet, first: int = 0) -> FeatureSet:
        return FeatureSet(source, backbone, precision, store, first)

    return Parts(part(data.train), part(data.validation), part(data.test, len(data.train.images)))


def fill(
    store: FeatureStore,
    data: Parts[ImageSet],
    backbone: Backbone,
    precision: str,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_chunk: Callable[[int], object] = lambda images: None,
) -> bool:
    """Computes the missing chunks, in order; ``False`` where ``should_stop`` was true before the end.

    ``on_chunk`` gets the number of images of each chunk.
    """
    train, test = data.train.whole(), data.test.whole()
    for number in list(store.missing):
        if should_stop():
            store.flush()
            return False
        first = number * store.key.chunk
        places = torch.arange(first, min(first + store.key.chunk, store.key.count), device=train.device)
        parts = [train.batch(places[places < len(train)])[0], test.batch(places[places >= len(train)] - len(train))[0]]
        pixels = torch.cat([part for part in parts if len(part)])
        store.write(number, features_of(backbone, pixels, precision))
        on_chunk(len(places))
    store.flush()
    return True


# -- the cache -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeaturePlan:
    """Where the features of ``backbone`` are kept: ``memory``, ``disk`` or ``off``; ``why``: the reason, if the mode
    was not requested."""

    backbone: Backbone
    data: Parts[ImageSet]
    precision: str
    key: FeatureKey
    mode: str
    why: str = ""

    @property
    def computed(self) -> str:
        """How often they are computed, which decides the last bits of a training."""
        return COMPUTED_AT_EACH_STEP if self.mode == "off" else COMPUTED_ONCE

    @property
    def text(self) -> str:
        """The plan as text, for a tag and the log."""
        size = f", {_size(self.key.total_bytes)} for {self.key.count:,} images" if self.mode != "off" else ""
        return f"{self.mode}{size}{f' ({self.why})' if self.why else ''}"


class FeatureCache:
    """The features of the runs of one process: the runs of a series need the same ones."""

    def __init__(self, state_dir: Path, mode: str = "auto") -> None:
        self.mode = mode
        self._state_dir, self._folder = state_dir, state_dir / FOLDER
        self._in_memory: MemoryFeatures | None = None

    def plan(
        self, backbone: Backbone, data: Parts[ImageSet], precision: str, augmentation: str, facts: Mapping[str, Any]
    ) -> FeaturePlan:
        """Chooses by the mode, and for ``auto`` by what is free. ``facts``: what else decides the bits.

        Raises ``UserError`` where ``memory`` has no room.
        """
        facts = {"trunk": backbone.digest(), "side": backbone.side, **facts}
        count, device = len(data.train.images) + len(data.test.images), data.train.device
        key = FeatureKey(facts, count, backbone.feature_shape, FEATURE_TYPES[precision], CHUNK[device.type])
        if augmentation != "none":
            why = f"augmentation is {augmentation}: no image is the same twice"
            return FeaturePlan(backbone, data, precision, key, "off", why)
        if self._in_memory and self._in_memory.key.name != key.name:
            self._in_memory = None  # features of another key only take room
        memory = sys.maxsize if self._in_memory else available_memory(device)
        if self.mode == "memory" and key.total_bytes > memory:
            raise UserError(
                f"--trunk-cache memory: the features need {_size(key.total_bytes)}, {_size(memory)} are free; "
                "use --trunk-cache auto, disk or off"
            )
        mode, why = (self.mode, "") if self.mode != "auto" else self._choose(key, memory)
        return FeaturePlan(backbone, data, precision, key, mode, why)

    def _choose(self, key: FeatureKey, memory: int) -> tuple[str, str]:
        """Mode, and why, for ``auto``. Features that are on the disk already are read from there."""
        if memory < sys.maxsize and DiskFeatures.bytes_there(key, self._folder):
            return "disk", ""
        if key.total_bytes <= MEMORY_SHARE * memory:
            return "memory", ""
        if key.total_bytes <= DISK_SHARE * shutil.disk_usage(make_folder(self._state_dir)).free:
            return "disk", f"{_size(memory)} of memory are free"
        return "off", f"{_size(key.total_bytes)} fit neither into {_size(memory)} of free memory nor on the disk"

    def load(
        self,
        plan: FeaturePlan,
        observer: Observer,
        spent: DeviceTime,
        should_stop: Callable[[], bool],
        *,
        run_key: str = "",
        resumed: bool = False,
    ) -> TrainingData | None:
        """The data as inputs of the trained layers; ``None`` where ``should_stop`` was true before all was computed.

        ``resumed``: the training resumes from a checkpoint, so an earlier attempt had the features. Raises
        ``DiskFullError`` or ``StateDirError``.
        """
        if plan.why:
            observer.warn(f"trunk cache {plan.text}")
        store: FeatureStore | None = None
        if plan.mode == "memory":
            store = self._in_memory = self._in_memory or MemoryFeatures(plan.key, plan.data.train.device)
            if not self._fill(plan, store, observer, spent, should_stop, run_key, resumed):
                return None
        elif plan.mode == "disk":
            with self._only_writer(plan.key, observer, should_stop) as locked:
                if not locked:
                    return None
                observer.phase_changed(Phase.FEATURES, "checking the backbone's features on disk")
                store = DiskFeatures(plan.key, self._folder)
                if not store.check(should_stop):
                    return None
                if not resumed:  # otherwise the checkpoint's costs include them
                    spent.found_seconds = store.seconds.get(run_key, 0.0)
                if not self._fill(plan, store, observer, spent, should_stop, run_key, resumed):
                    return None
        return with_features(plan.data, plan.backbone, plan.precision, store)

    def _fill(
        self,
        plan: FeaturePlan,
        store: FeatureStore,
        observer: Observer,
        spent: DeviceTime,
        should_stop: Callable[[], bool],
        run_key: str,
        resumed: bool,
    ) -> bool:
        chunk, total = plan.key.chunk, plan.key.count
        done = total - sum(min(chunk, total - number * chunk) for number in store.missing)
        mark = reported = time.perf_counter()

        def on_chunk(images: int) -> None:
            nonlocal done, mark, reported
            now = time.perf_counter()
            seconds, mark, done = now - mark, now, done + images
            spent.feature_seconds += seconds
            spent.repeated_seconds += seconds if resumed else 0.0
            if isinstance(store, DiskFeatures):
                store.seconds[run_key] = store.seconds.get(run_key, 0.0) + seconds
            if now - reported > PROGRESS_INTERVAL_S:
                reported = now
                observer.phase_changed(Phase.FEATURES, f"frozen backbone: {done:,} of {total:,} images")

        if store.missing:
            text = f"frozen backbone: {done:,} of {total:,} images; features kept: {plan.text}"
            observer.phase_changed(Phase.FEATURES, text)
        return fill(store, plan.data, plan.backbone, plan.precision, should_stop=should_stop, on_chunk=on_chunk)

    @contextmanager
    def _only_writer(self, key: FeatureKey, observer: Observer, should_stop: Callable[[], bool]) -> Iterator[bool]:
        """Waits until no other process computes these features; ``False`` where ``should_stop`` is true before."""
        path = make_folder(self._folder) / f"{key.name}.lock"
        waiting = False
        while (descriptor := try_lock(path)) is None:
            if should_stop():
                yield False
                return
            if not waiting:
                waiting = True
                observer.phase_changed(Phase.FEATURES, "waiting for another process to compute the backbone's features")
            time.sleep(0.2)
        try:
            yield True
        finally:
            os.close(descriptor)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
