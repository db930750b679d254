"""What a run records, as plain values without MLflow, so that recording costs next to nothing."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cnn_jobs.tracking import names

LARGEST = sys.float_info.max
Identity = tuple[str, int, float | str | None]


@dataclass(frozen=True)
class Metric:
    """One point of a metric. ``timestamp_ms`` is when it was measured, and never changes, however late it is sent."""

    key: str
    value: float
    step: int
    timestamp_ms: int

    @property
    def identity(self) -> Identity:
        """Equal for two points of the same measurement, whenever it was made, and after MLflow has stored it."""
        if self.key.startswith(names.CLOCK_METRICS):
            return self.key, self.step, None
        if math.isnan(self.value):  # equal to nothing, not even to itself
            return self.key, self.step, "NaN"
        # Databases hold no infinity: MLflow stores the largest number instead.
        return self.key, self.step, max(-LARGEST, min(self.value, LARGEST))


@dataclass(frozen=True)
class DatasetInput:
    """The run's data set, for ``log_inputs``. ``digest``: 64 hex digits, of which MLflow holds 36."""

    name: str
    digest: str
    source: str
    profile: Mapping[str, Any]


@dataclass(frozen=True)
class RunHeader:
    """The run that a journal belongs to: experiment, key, name and first tags; ``parent_key``: of the run above, or
    ""."""

    experiment: str
    run_key: str
    name: str
    start_ms: int
    tags: Mapping[str, str]
    parent_key: str = ""


@dataclass(frozen=True)
class AttemptMark:
    """One attempt: a unique id and a rising number. ``replaces``: ids of attempts that are known to be over."""

    id: str
    number: int
    replaces: frozenset[str] = frozenset()
    # The key is from a Kubernetes Job, which starts a pod only when the one before is gone.
    replaces_any: bool = False
    # May continue a FINISHED run: a series that gets more runs.
    reopens: bool = False
    # May continue a cancelled run, at the user's request.
    revives: bool = False


def now_ms() -> int:
    """The wall clock in milliseconds since 1970, as in MLflow's timestamps."""
    return time.time_ns() // 1_000_000
