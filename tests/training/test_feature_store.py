"""Features on disk: damaged and incomplete files, full disks, and the key that names them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from cnn_jobs.data.batches import ImageSet, Parts
from cnn_jobs.errors import DiskFullError, StateDirError
from cnn_jobs.models.build import Backbone
from cnn_jobs.training.feature_cache import fill
from cnn_jobs.training.feature_store import DiskFeatures, FeatureKey
from tests.helpers.features import key_of, on_disk

CHUNKS = 11


@pytest.fixture
def stored(backbone: Backbone, images: Parts[ImageSet], tmp_path: Path) -> tuple[FeatureKey, Path]:
    """The key and the file of all features."""
    key = key_of(backbone, images)
    assert fill(on_disk(key, tmp_path), images, backbone, "fp32")
    return key, tmp_path / f"{key.name}.features"


@pytest.mark.parametrize("place", [0, 5000, -1])
def test_chunk_with_a_flipped_bit_is_computed_again(
    stored: tuple[FeatureKey, Path], backbone: Backbone, images: Parts[ImageSet], place: int
) -> None:
    key, path = stored
    content = bytearray(path.read_bytes())
    expected = bytes(content)
    content[place] ^= 16
    path.write_bytes(bytes(content))
    store = on_disk(key, path.parent)
    assert store.missing == [(place % len(content)) // (key.chunk * key.image_bytes)]
    assert fill(store, images, backbone, "fp32")
    assert path.read_bytes() == expected


def test_truncated_file_is_completed(
    stored: tuple[FeatureKey, Path], backbone: Backbone, images: Parts[ImageSet]
) -> None:
    key, path = stored
    expected = path.read_bytes()
    path.write_bytes(expected[: 3 * key.chunk * key.image_bytes + 7])
    store = on_disk(key, path.parent)
    assert store.missing == list(range(3, CHUNKS))
    assert fill(store, images, backbone, "fp32")
    assert path.read_bytes() == expected


def test_damaged_index_counts_as_none(stored: tuple[FeatureKey, Path]) -> None:
    key, path = stored
    index = path.with_suffix(".json")
    content = json.loads(index.read_text())
    assert (content["facts"], len(content["crc32"])) == ({"trunk": "t"}, CHUNKS)
    for text in ("", "{", "[]", '{"crc32": 7}', '{"facts": {}}'):
        index.write_text(text)
        assert on_disk(key, path.parent).missing == list(range(CHUNKS)), text


def test_writes_to_features_do_not_reach_the_file(stored: tuple[FeatureKey, Path]) -> None:
    key, path = stored
    before = path.read_bytes()
    on_disk(key, path.parent).read(torch.arange(3)).zero_()
    assert path.read_bytes() == before


def test_check_can_be_stopped_between_chunks(stored: tuple[FeatureKey, Path]) -> None:
    key, path = stored
    answers = iter([False, False, False, True])
    assert not DiskFeatures(key, path.parent).check(lambda: next(answers))
    assert list(answers) == []
    assert DiskFeatures.bytes_there(key, path.parent) == key.total_bytes
    assert DiskFeatures.bytes_there(replace(key, chunk=6), path.parent) == 0


def test_features_larger_than_the_memory_can_be_read(tmp_path: Path) -> None:
    """The kernel would refuse a private map of such a file. Nothing is written: the file is sparse."""
    count = 2 * (psutil.virtual_memory().total + psutil.swap_memory().total) // (256 * 14 * 14 * 4)
    key = FeatureKey({}, count, (256, 14, 14), torch.float32, 50)
    if key.total_bytes > 2**43:
        pytest.skip("twice the memory is more than a file may have")
    store = DiskFeatures(key, tmp_path)
    assert torch.equal(store.read(torch.tensor([0, count - 1])), torch.zeros(2, 256, 14, 14))


def test_errors_of_the_disk_are_classified(
    backbone: Backbone, images: Parts[ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateDirError):
        DiskFeatures(key_of(backbone, images), tmp_path / "file" / "below")
    store = on_disk(key_of(backbone, images), tmp_path)
    real = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **settings: Any) -> Any:
        if mode == "rb+" and self.suffix == ".features":
            raise OSError(28, "No space left on device")
        return real(self, mode, *args, **settings)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DiskFullError):
        fill(store, images, backbone, "fp32")


def test_key_depends_on_everything_that_decides_the_bits(backbone: Backbone, images: Parts[ImageSet]) -> None:
    key = key_of(backbone, images)
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
    assert (key.image_bytes, key.total_bytes, key.chunks) == (256 * 2 * 2 * 4, 52 * 4096, CHUNKS)
