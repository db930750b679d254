"""A frozen trunk's features: the same whether kept or computed anew, whole or in two goes, in memory or on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cnn_jobs.data.batches import ImageSet, Parts, place_on_device
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.errors import DiskFullError, StateDirError
from cnn_jobs.models.build import Backbone, build_resnet18
from cnn_jobs.networks.spec import InputTransform
from cnn_jobs.recipe import Recipe
from cnn_jobs.training import feature_cache as module
from cnn_jobs.training.feature_cache import DiskFeatures, FeatureKey, MemoryFeatures, features_of, fill, with_features
from tests.helpers.training import CPU

RECIPE = Recipe(batch_size=9)
Store = MemoryFeatures | DiskFeatures


@pytest.fixture(scope="module")
def trunk(resnet18_file: Path) -> Backbone:
    trunk, _ = build_resnet18(torch.load(resnet18_file), 32, 10, seed=0)
    return trunk.to(memory_format=torch.channels_last)


@pytest.fixture
def data(tiny_dataset: Dataset) -> Parts[ImageSet]:
    return place_on_device(tiny_dataset, RECIPE, InputTransform(), CPU.device, CPU.memory_format)


def key_of(trunk: Backbone, data: Parts[ImageSet], precision: str = "fp32", chunk: int = 5) -> FeatureKey:
    count = len(data.train.images) + len(data.test.images)
    return FeatureKey({"trunk": "t"}, count, trunk.feature_shape, module.FEATURE_TYPES[precision], chunk)


def on_disk(key: FeatureKey, folder: Path) -> DiskFeatures:
    """Opened and checked, as by another process."""
    store = DiskFeatures(key, folder)
    assert store.check()
    return store


@pytest.fixture(params=["memory", "disk"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[FeatureKey], Store]:
    if request.param == "memory":
        return lambda key: MemoryFeatures(key, CPU.device)
    return lambda key: on_disk(key, tmp_path / "features")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kept_features_are_those_that_the_trunk_gives_for_the_same_chunk(
    make: Callable[[FeatureKey], Store], trunk: Backbone, data: Parts[ImageSet], precision: str
) -> None:
    store = make(key_of(trunk, data, precision))
    images: list[int] = []
    assert fill(store, data, trunk, precision, on_chunk=images.append)
    assert sum(images) == 52  # 40 and 12
    assert images == [5] * 10 + [2]
    assert store.missing == []
    expected = []
    whole = torch.cat([data.train.whole().batch(torch.arange(40))[0], data.test.whole().batch(torch.arange(12))[0]])
    for chunk in torch.split(whole, 5):
        expected.append(features_of(trunk, chunk, precision))
    kept = store.read(torch.arange(52))
    assert kept.dtype == module.FEATURE_TYPES[precision]
    assert kept.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(kept, torch.cat(expected))


def test_the_parts_give_the_features_of_their_own_images_and_labels(
    make: Callable[[FeatureKey], Store], trunk: Backbone, data: Parts[ImageSet]
) -> None:
    store = make(key_of(trunk, data))
    assert fill(store, data, trunk, "fp32")
    kept, fresh = with_features(data, trunk, "fp32", store), with_features(data, trunk, "fp32", None)
    for name in ("train", "validation", "test"):
        one, other, source = (getattr(parts, name) for parts in (kept, fresh, data))
        assert len(one) == len(source)
        positions = torch.randperm(len(one))[:4]
        features, labels = one.batch(positions)
        again, same = other.batch(positions)
        torch.testing.assert_close(features, again, rtol=1e-4, atol=1e-5)
        pixels, expected = source.batch(positions)
        assert torch.equal(labels, expected)
        assert torch.equal(same, expected)
        assert torch.equal(again, features_of(trunk, pixels, "fp32"))
        assert torch.equal(torch.cat([y for _, y in one.in_order(7)]), torch.cat([y for _, y in source.in_order(7)]))
        assert not features.requires_grad


def test_augmented_images_have_no_kept_features(trunk: Backbone, data: Parts[ImageSet]) -> None:
    store = MemoryFeatures(key_of(trunk, data), CPU.device)
    assert fill(store, data, trunk, "fp32")
    part, positions = with_features(data, trunk, "fp32", store).train, torch.arange(6)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(4)

    features, _ = part.batch(positions, "flip+crop", generator())
    pixels, _ = data.train.batch(positions, "flip+crop", generator())
    assert torch.equal(features, features_of(trunk, pixels, "fp32"))
    assert not torch.equal(features, part.batch(positions)[0])


@pytest.mark.parametrize("stop_after", range(0, 12))
def test_a_pass_that_is_stopped_anywhere_goes_on_to_the_same_bits(
    make: Callable[[FeatureKey], Store], trunk: Backbone, data: Parts[ImageSet], stop_after: int
) -> None:
    key = key_of(trunk, data)
    whole = MemoryFeatures(key, CPU.device)
    assert fill(whole, data, trunk, "fp32")
    store, done = make(key), [0]

    def count(images: int) -> None:
        done[0] += 1

    finished = fill(store, data, trunk, "fp32", should_stop=lambda: done[0] >= stop_after, on_chunk=count)
    assert finished == (stop_after >= 11)
    if isinstance(store, DiskFeatures):
        store = on_disk(key, store._path.parent)
    assert store.missing == list(range(stop_after, 11))
    assert fill(store, data, trunk, "fp32")
    assert torch.equal(store.read(torch.arange(52)), whole.read(torch.arange(52)))


# -- on disk -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(trunk: Backbone, data: Parts[ImageSet], tmp_path: Path) -> tuple[FeatureKey, Path]:
    key = key_of(trunk, data)
    assert fill(on_disk(key, tmp_path), data, trunk, "fp32")
    return key, tmp_path / f"{key.name}.features"


@pytest.mark.parametrize("place", [0, 5000, -1])
def test_a_flipped_bit_is_found_and_only_its_chunk_computed_again(
    stored: tuple[FeatureKey, Path], trunk: Backbone, data: Parts[ImageSet], place: int
) -> None:
    key, path = stored
    content = bytearray(path.read_bytes())
    expected = bytes(content)
    content[place] ^= 16
    path.write_bytes(bytes(content))
    store = on_disk(key, path.parent)
    assert store.missing == [(place % len(content)) // (key.chunk * key.image_bytes)]
    assert fill(store, data, trunk, "fp32")
    assert path.read_bytes() == expected


def test_a_file_that_is_cut_short_is_completed(
    stored: tuple[FeatureKey, Path], trunk: Backbone, data: Parts[ImageSet]
) -> None:
    key, path = stored
    expected = path.read_bytes()
    path.write_bytes(expected[: 3 * key.chunk * key.image_bytes + 7])
    store = on_disk(key, path.parent)
    assert store.missing == list(range(3, 11))
    assert fill(store, data, trunk, "fp32")
    assert path.read_bytes() == expected


@pytest.mark.parametrize("text", ["", "{", "[]", '{"crc32": 7}', '{"facts": {}}'])
def test_without_a_whole_index_all_is_computed_again(stored: tuple[FeatureKey, Path], text: str) -> None:
    key, path = stored
    path.with_suffix(".json").write_text(text)
    assert on_disk(key, path.parent).missing == list(range(11))


def test_the_index_says_what_the_file_is_of_and_what_it_cost(stored: tuple[FeatureKey, Path]) -> None:
    _, path = stored
    content = json.loads(path.with_suffix(".json").read_text())
    assert content["facts"] == {"trunk": "t"}
    assert len(content["crc32"]) == 11


def test_what_is_read_can_be_written_to_without_reaching_the_file(stored: tuple[FeatureKey, Path]) -> None:
    key, path = stored
    before = path.read_bytes()
    store = on_disk(key, path.parent)
    store.read(torch.arange(3)).zero_()
    assert path.read_bytes() == before


def test_a_check_can_be_stopped_between_chunks(stored: tuple[FeatureKey, Path]) -> None:
    key, path = stored
    asked = [0]

    def should_stop() -> bool:
        asked[0] += 1
        return asked[0] > 3

    assert not DiskFeatures(key, path.parent).check(should_stop)
    assert asked[0] == 4
    assert DiskFeatures.bytes_there(key, path.parent) == key.total_bytes
    assert DiskFeatures.bytes_there(replace(key, chunk=6), path.parent) == 0


def test_features_larger_than_the_memory_can_be_read(trunk: Backbone, tmp_path: Path) -> None:
    """A private map of such a file is refused. The file has holes: nothing is written."""
    import psutil

    images = 2 * (psutil.virtual_memory().total + psutil.swap_memory().total) // (256 * 14 * 14 * 4)
    key = FeatureKey({}, images, (256, 14, 14), torch.float32, 50)
    if key.total_bytes > 2**43:
        pytest.skip("more memory than a file system has room for names of")
    store = DiskFeatures(key, tmp_path)
    assert torch.equal(store.read(torch.tensor([0, images - 1])), torch.zeros(2, 256, 14, 14))


def test_a_disk_that_refuses_is_one_clear_error(
    trunk: Backbone, data: Parts[ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateDirError):
        DiskFeatures(key_of(trunk, data), tmp_path / "file" / "below")
    store = on_disk(key_of(trunk, data), tmp_path)
    real = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **settings: Any) -> Any:
        if mode == "rb+" and self.suffix == ".features":
            raise OSError(28, "No space left on device")
        return real(self, mode, *args, **settings)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DiskFullError):
        fill(store, data, trunk, "fp32")


def test_a_key_changes_with_all_that_decides_the_bits(trunk: Backbone, data: Parts[ImageSet]) -> None:
    key = key_of(trunk, data)
    others = [
        replace(key, facts={"trunk": "u"}),
        replace(key, facts={"trunk": "t", "threads": 2}),
        replace(key, count=53),
        replace(key, shape=(256, 1, 1)),
        replace(key, dtype=torch.bfloat16),
        replace(key, chunk=6),
    ]
    assert len({key.name, *(other.name for other in others)}) == 7
    assert replace(key).name == key.name
    assert (key.image_bytes, key.total_bytes, key.chunks) == (256 * 2 * 2 * 4, 52 * 4096, 11)
