"""What a run tells MLflow, as plain values: no mlflow import, so that making one costs next to nothing."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cnn_jobs.tracking import names

# The ``cnn_jobs.state`` that 'cnn-jobs cancel' sets and attempts keep.
CANCELLED = "cancelled"

LARGEST = sys.float_info.max
Identity = tuple[str, int, float | str | None]


@dataclass(frozen=True)
class Metric:
    """One point of a metric; ``timestamp_ms`` is when it was measured, and stays so however late it is sent."""

    key: str
    value: float
    step: int
    timestamp_ms: int

    @property
    def identity(self) -> Identity:
        """What makes a second row the same as this one, whenever it was measured, and after MLflow stored it."""
        if self.key.startswith(names.CLOCK_METRICS):
            return self.key, self.step, None
        if math.isnan(self.value):  # equal to nothing, not even to itself
            return self.key, self.step, "NaN"
        # Databases hold no infinity: MLflow keeps the largest number in its place.
        return self.key, self.step, max(-LARGEST, min(self.value, LARGEST))


@dataclass(frozen=True)
class DatasetInput:
    """The data set of the run, for ``log_inputs``. ``digest``: 64 hex digits, of which MLflow holds 36."""

    name: str
    digest: str
    source: str
    profile: Mapping[str, Any]


@dataclass(frozen=True)
class RunHeader:
    """The run that a journal is of: where, under which key and name, with which tags.

    ``parent_key``: key of the run that it stands below, "" for none.
    """

    experiment: str
    run_key: str
    name: str
    start_ms: int
    tags: Mapping[str, str]
    parent_key: str = ""


@dataclass(frozen=True)
class AttemptMark:
    """One attempt: its own id and rising number. ``replaces``: ids of attempts that are known to be over."""

    id: str
    number: int
    replaces: frozenset[str] = frozenset()
    # A key that Kubernetes gave: it starts the next pod only when the one before is gone.
    replaces_any: bool = False
    # May go on with a run that is FINISHED: a series that gets more runs.
    reopens: bool = False
    # May go on with a run that was cancelled: somebody asked for just that.
    revives: bool = False


@dataclass(frozen=True)
class Ending:
    """How an attempt ended: MLflow's status, ``cnn_jobs.state``, the reason in words, when."""

    status: str
    state: str
    reason: str
    time_ms: int

    def as_dict(self) -> dict[str, Any]:
        """For the journal."""
        return asdict(self)


def now_ms() -> int:
    """Wall clock in milliseconds since 1970, as MLflow stamps it."""
    return time.time_ns() // 1_000_000
