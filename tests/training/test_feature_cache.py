"""Features of a frozen backbone: the same whether stored or computed at each step, and computed once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from cnn_jobs.data.batches import ImageSet, Parts, TrainingData
from cnn_jobs.errors import UserError
from cnn_jobs.models.build import Backbone
from cnn_jobs.training import feature_cache as module
from cnn_jobs.training.feature_cache import FeatureCache, FeaturePlan, features_of, fill, with_features
from cnn_jobs.training.feature_store import DiskFeatures, FeatureKey, MemoryFeatures
from cnn_jobs.training.loop import DeviceTime
from cnn_jobs.training.observer import Observer, Phase
from tests.helpers.features import key_of, on_disk
from tests.helpers.training import CPU

CHUNKS = 11  # of 5 images
OpenStore = Callable[[FeatureKey], MemoryFeatures | DiskFeatures]
Plan = Callable[..., tuple[FeatureCache, FeaturePlan]]


@pytest.fixture(params=["memory", "disk"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    if request.param == "memory":
        return lambda key: MemoryFeatures(key, CPU.device)
    return lambda key: on_disk(key, tmp_path / "features")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stored_features_are_those_of_the_backbone(
    open_store: OpenStore, backbone: Backbone, images: Parts[ImageSet], precision: str
) -> None:
    store = open_store(key_of(backbone, images, precision))
    counts: list[int] = []
    assert fill(store, images, backbone, precision, on_chunk=counts.append)
    assert counts == [5] * 10 + [2]
    assert store.missing == []
    pixels = torch.cat(
        [images.train.whole().batch(torch.arange(40))[0], images.test.whole().batch(torch.arange(12))[0]]
    )
    expected = [features_of(backbone, chunk, precision) for chunk in torch.split(pixels, 5)]
    stored = store.read(torch.arange(52))
    assert stored.dtype == module.FEATURE_TYPES[precision]
    assert stored.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(stored, torch.cat(expected))


def test_parts_have_the_features_of_their_own_images_and_labels(
    open_store: OpenStore, backbone: Backbone, images: Parts[ImageSet]
) -> None:
    store = open_store(key_of(backbone, images))
    assert fill(store, images, backbone, "fp32")
    stored, computed = with_features(images, backbone, "fp32", store), with_features(images, backbone, "fp32", None)
    for name in ("train", "validation", "test"):
        one, other, source = (getattr(parts, name) for parts in (stored, computed, images))
        assert len(one) == len(source)
        positions = torch.randperm(len(one))[:4]
        features, labels = one.batch(positions)
        again, same = other.batch(positions)
        torch.testing.assert_close(features, again, rtol=1e-4, atol=1e-5)
        pixels, expected = source.batch(positions)
        assert torch.equal(labels, expected)
        assert torch.equal(same, expected)
        assert torch.equal(again, features_of(backbone, pixels, "fp32"))
        assert torch.equal(torch.cat([y for _, y in one.in_order(7)]), torch.cat([y for _, y in source.in_order(7)]))
        assert not features.requires_grad


def test_features_of_augmented_images_are_computed(backbone: Backbone, images: Parts[ImageSet]) -> None:
    store = MemoryFeatures(key_of(backbone, images), CPU.device)
    assert fill(store, images, backbone, "fp32")
    part, positions = with_features(images, backbone, "fp32", store).train, torch.arange(6)
    features, _ = part.batch(positions, "flip+crop", torch.Generator().manual_seed(4))
    pixels, _ = images.train.batch(positions, "flip+crop", torch.Generator().manual_seed(4))
    assert torch.equal(features, features_of(backbone, pixels, "fp32"))
    assert not torch.equal(features, part.batch(positions)[0])


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_pass_stopped_anywhere_continues_to_the_same_bits(
    kind: str, backbone: Backbone, images: Parts[ImageSet], tmp_path: Path
) -> None:
    key = key_of(backbone, images)
    reference = MemoryFeatures(key, CPU.device)
    assert fill(reference, images, backbone, "fp32")
    for stop_after in range(CHUNKS + 1):
        folder = tmp_path / str(stop_after)
        store = MemoryFeatures(key, CPU.device) if kind == "memory" else on_disk(key, folder)
        done: list[int] = []
        complete = fill(
            store,
            images,
            backbone,
            "fp32",
            should_stop=lambda done=done, limit=stop_after: len(done) >= limit,
            on_chunk=done.append,
        )
        assert complete == (stop_after >= CHUNKS)
        if kind == "disk":
            store = on_disk(key, folder)
        assert store.missing == list(range(stop_after, CHUNKS))
        assert fill(store, images, backbone, "fp32")
        assert torch.equal(store.read(torch.arange(52)), reference.read(torch.arange(52)))


# -- the cache ---------------------------------------------------------------------------------------------------------

SIZE = 52 * 256 * 2 * 2 * 4  # bytes of all features


class Watching(Observer):
    """Keeps phases and warnings."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.warnings: list[str] = []

    def phase_changed(self, phase: Phase, text: str) -> None:
        self.phases.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def never() -> bool:
    return False


@pytest.fixture
def plan(backbone: Backbone, images: Parts[ImageSet], tmp_path: Path) -> Plan:
    """A new cache, and its plan for the images."""

    def plan(mode: str = "auto", augmentation: str = "none") -> tuple[FeatureCache, FeaturePlan]:
        cache = FeatureCache(tmp_path / "state", mode)
        return cache, cache.plan(backbone, images, "fp32", augmentation, {})

    return plan


def free(monkeypatch: pytest.MonkeyPatch, *, memory: float, disk: float) -> None:
    """Sets what is free, in sizes of all features."""
    monkeypatch.setattr(module, "available_memory", lambda device: int(memory * SIZE))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": int(disk * SIZE)}))


@pytest.mark.parametrize(
    ("memory", "disk", "mode", "why"),
    [
        (4.0, 4.0, "memory", ""),
        (1.9, 4.0, "disk", "0.4 MB of memory are free"),
        (1.9, 1.0, "off", "0.2 MB fit neither into 0.4 MB of free memory nor on the disk"),
    ],
)
def test_auto_chooses_by_free_space(
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
    memory: float,
    disk: float,
    mode: str,
    why: str,
) -> None:
    free(monkeypatch, memory=memory, disk=disk)
    _, planned = plan()
    assert planned.key.total_bytes == SIZE
    assert (planned.mode, planned.why) == (mode, why)
    assert plan("disk")[1].mode == "disk"


def test_auto_reads_features_that_are_on_disk(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is free by then: the file itself takes the space."""
    cache, planned = plan("disk")
    assert cache.load(planned, Observer(), DeviceTime(), never)
    for memory in (0, 1e9):
        free(monkeypatch, memory=memory, disk=0)
        (cache, planned), spent = plan(), DeviceTime()
        assert (planned.mode, planned.why) == ("disk", "")
        assert cache.load(planned, Observer(), spent, never)
        assert spent.feature_seconds == 0


def test_memory_without_room_is_a_one_line_error(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, memory=0.5, disk=4)
    with pytest.raises(UserError, match=r"features need 0\.2 MB, 0\.1 MB are free; use --trunk-cache auto") as caught:
        plan("memory")
    assert "\n" not in str(caught.value)


def test_augmentation_turns_the_cache_off_and_warns(plan: Plan) -> None:
    cache, planned = plan("memory", "flip")
    observer, spent = Watching(), DeviceTime()
    assert planned.text == "off (augmentation is flip: no image is the same twice)"
    assert cache.load(planned, observer, spent, never)
    assert observer.warnings == [f"trunk cache {planned.text}"]
    assert spent.feature_seconds == 0


def test_two_processes_compute_the_features_once(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads, whose locks exclude each other as those of processes do."""
    monkeypatch.setitem(module.CHUNK, "cpu", 10)
    (first, planned), (second, _) = plan("disk"), plan("disk")
    observer, spent, started = Watching(), [DeviceTime(), DeviceTime()], threading.Event()

    def slowly() -> bool:
        started.set()
        time.sleep(0.05)
        return False

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first.load, planned, Observer(), spent[0], slowly)
        assert started.wait(10)
        other = pool.submit(second.load, planned, observer, spent[1], never)
        loaded: list[TrainingData | None] = [one.result(), other.result()]
    assert "waiting for another process to compute the backbone's features" in observer.phases
    assert spent[0].feature_seconds > 0 == spent[1].feature_seconds
    assert torch.equal(*(data.train.batch(torch.arange(5))[0] for data in loaded if data))


def test_wait_for_another_process_can_be_stopped(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, planned = plan("disk")
    monkeypatch.setattr(module, "try_lock", lambda path: None)
    spent = DeviceTime()
    assert cache.load(planned, Observer(), spent, lambda: True) is None
    assert spent.feature_seconds == 0
