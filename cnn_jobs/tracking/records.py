"""What a run records, as plain values without MLflow, so that recording costs next to nothing."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cnn_jobs.errors import RunMismatchError
from cnn_jobs.system.redaction import redact
from cnn_jobs.tracking import names

LARGEST = sys.float_info.max
Identity = tuple[str, int, float | str | None]
ROLES = {"": "a single run", names.PARENT: "a series of runs", names.DOCUMENT: "a document"}
# What must not change between the attempts of a run key.
IDENTITY_TAGS = (names.TASK, names.RECIPE_HASH, names.DATA_DIGEST)


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
    """The run that a journal belongs to: experiment, key, name and first tags, without secrets; ``parent_key``: of the
    run above, or ""."""

    experiment: str
    run_key: str
    name: str
    start_ms: int
    tags: Mapping[str, str]
    parent_key: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", {tag: redact(text) for tag, text in self.tags.items()})

    def check_same(self, tags: Mapping[str, str], where: str) -> None:
        """Raises ``RunMismatchError`` (exit 2) if ``tags``, found in ``where``, are of another task, recipe, data set
        or role. A tag that one of them lacks is not compared."""
        found, own = tags.get(names.ROLE, ""), self.tags.get(names.ROLE, "")
        if found != own:
            raise RunMismatchError(
                f"run {self.run_key}: {where} is {ROLES.get(found, found)}, but this command is for {ROLES[own]}; "
                "use another --run-key"
            )
        for tag in IDENTITY_TAGS:
            theirs, ours = tags.get(tag, ""), self.tags.get(tag, "")
            if theirs and ours and theirs != ours:
                raise RunMismatchError(
                    f"run {self.run_key}: {where} has the {tag.removeprefix(names.PREFIX)} {theirs[:12]}, this command "
                    f"{ours[:12]}; use another --run-key, or the options and data with which it was started"
                )


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
