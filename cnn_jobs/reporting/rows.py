"""What the report is made of: runs as MLflow holds them, without MLflow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

MODELS = ("last", "best")
PARTS = ("train", "val", "test")
LARGEST = 1e300
# What a run must have measured to be counted.
NEEDED = tuple(f"{model}/{part}_{what}" for model in MODELS for part in PARTS for what in ("loss", "accuracy"))


@dataclass(frozen=True)
class Confusion:
    """Counts of answers on the test set; ``counts[i][j]``: images of class i that were taken for class j."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Curve:
    """Values at rising optimiser steps."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class TrainingRun:
    """One run of a task: params, last metric values and tags by name, and what was read beside them.

    ``train_loss`` is thinned: at each validation, the mean over the steps since the one before. ``mistakes``: a PNG.
    ``lacking``: what of this could not be read, in words.
    """

    run_id: str
    name: str
    url: str
    status: str
    start_ms: int
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    train_loss: Curve = Curve()
    val_loss: Curve = Curve()
    val_accuracy: Curve = Curve()
    confusion: Confusion | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    mistakes: bytes = b""
    lacking: tuple[str, ...] = ()

    @property
    def task(self) -> str:
        """Name of the task that it trained, empty for a run that is not ours."""
        return self.tags.get("cnn_jobs.task", "")

    @property
    def group_hash(self) -> str:
        """What runs share that differ in the seed alone."""
        return self.tags.get("cnn_jobs.group_hash", "")

    @property
    def seed(self) -> int:
        """Its seed. Raises ``ValueError`` where the param is no number."""
        return int(self.params["seed"])


@dataclass(frozen=True)
class Aside:
    """A run that is not counted, and why."""

    run_id: str
    name: str
    url: str
    state: str
    reason: str


def reason_against(run: TrainingRun, tasks: Sequence[str]) -> str:
    """Why a run cannot be counted, in words; empty where it can."""
    state = run.tags.get("cnn_jobs.state", "")
    if run.task not in tasks:
        return f"its task '{run.task}' is none of this version's"
    if run.status != "FINISHED" or state != "finished":
        told = run.tags.get("cnn_jobs.reason", "")
        return f"it did not finish{': ' + told if told else ''}"
    lacking = [tag for tag in ("cnn_jobs.group_hash", "cnn_jobs.data_digest") if not run.tags.get(tag)]
    if lacking:
        return f"it has no tag {' and no '.join(lacking)}"
    if not run.params.get("seed", "").isdigit():
        return f"its param seed is '{run.params.get('seed', '')}', not a number"
    missing = [name for name in NEEDED if name not in run.metrics]
    if missing:
        return f"it has no {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
    odd = next((name for name in NEEDED if not is_number(run.metrics[name])), None)
    return f"its {odd} is {run.metrics[odd]}" if odd else ""


def is_number(value: float) -> bool:
    """Whether it can be averaged. MLflow gives infinity back as the largest float."""
    return math.isfinite(value) and abs(value) < LARGEST


def thinned(losses: Curve, at: Sequence[int]) -> Curve:
    """The mean of ``losses`` over the steps after each of ``at`` and up to the next, at that next one.

    Steps without a loss give no point.
    """
    steps, values, start = [], [], 0
    for before, end in pairwise((0, *at)):
        stretch = []
        while start < len(losses.steps) and losses.steps[start] <= end:
            if losses.steps[start] > before:
                stretch.append(losses.values[start])
            start += 1
        if stretch:
            steps.append(end)
            values.append(math.fsum(stretch) / len(stretch))
    return Curve(tuple(steps), tuple(values))
