"""Two states of a training, compared bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cnn_jobs.errors import CnnJobsError


@dataclass(frozen=True)
class Comparison:
    """How many values of one kind were compared, and where they differ, in words."""

    what: str
    compared: int
    differences: tuple[str, ...]


def compare_tensors(what: str, before: Any, after: Any) -> Comparison:
    """Every tensor and plain value of two nested structures. Raises ``CnnJobsError`` where there is none."""
    old, new = dict(_flat(before)), dict(_flat(after))
    differing = tuple(name for name in sorted(old.keys() | new.keys()) if not _same(old.get(name), new.get(name)))
    if not old:
        raise CnnJobsError(f"the run's {what} hold nothing to compare")
    return Comparison(what, len(old), differing)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor and plain value in a nested structure, by its path."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(each, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _flat(each, f"{path}[{index}]")
    else:
        yield path, value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        one, other = one.detach().cpu().contiguous(), other.detach().cpu().contiguous()
        same_kind = one.dtype == other.dtype and one.shape == other.shape
        return same_kind and bool(one.view(-1).view(torch.uint8).equal(other.view(-1).view(torch.uint8)))
    return repr(one) == repr(other)
