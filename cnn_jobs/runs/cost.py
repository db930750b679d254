"""What the attempts of a run cost: steps, device seconds and wall time, useful or wasted."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cnn_jobs.errors import CnnJobsError
from cnn_jobs.system.files import write_text
from cnn_jobs.tracking import names
from cnn_jobs.training.loop import DeviceTime

# Maximum age of the file of costs.
UNWRITTEN_S = 1.0
# A tag holds 8,000 characters, an attempt takes about 90.
MOST_ATTEMPTS = 80


@dataclass(frozen=True)
class AttemptCost:
    """One attempt: its optimiser steps, device seconds (training and evaluation), and seconds from the start of its
    process to its end."""

    attempt: int
    steps: int
    device_seconds: float
    wall_seconds: float


@dataclass
class RunCost:
    """The attempts before this one, this one, and how much of all that led to the present state of the training.

    The rest is wasted: steps after the last checkpoint before a kill, which are trained a second time.
    """

    attempt: int
    began: float  # on the monotonic clock
    path: Path
    own: DeviceTime
    before: Sequence[AttemptCost] = ()
    # Of the checkpoint that this attempt resumed from.
    useful_steps: int = 0
    useful_device_seconds: float = 0.0

    def attempts(self) -> list[AttemptCost]:
        """Every attempt so far, this one as it is now."""
        wall = time.monotonic() - self.began
        return [*self.before, AttemptCost(self.attempt, self.own.steps, self.own.device_seconds, wall)]

    def useful(self) -> dict[str, float]:
        """What led to the present state; part of every checkpoint."""
        own = self.own
        device = own.device_seconds - own.devices * own.repeated_seconds + own.found_seconds
        return {"steps": self.useful_steps + own.steps, "device_seconds": self.useful_device_seconds + device}

    def totals(self) -> dict[str, float]:
        """Metrics by name, over all attempts."""
        attempts, useful = self.attempts(), self.useful()
        steps = sum(each.steps for each in attempts)
        device = sum(each.device_seconds for each in attempts)
        return {
            names.ATTEMPTS: float(len(attempts)),
            names.STEPS: float(steps),
            names.WASTED_STEPS: max(0.0, steps - useful["steps"]),
            names.DEVICE_SECONDS: device,
            # Not below zero by the rounding of what was read back.
            names.WASTED_DEVICE_SECONDS: max(0.0, device - useful["device_seconds"]),
            names.WALL_SECONDS: sum(each.wall_seconds for each in attempts),
        }

    def as_json(self) -> str:
        """For the tag and for the next attempt."""
        attempts = [
            {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(each).items()}
            for each in self.attempts()
        ]
        return json.dumps({"attempts": merged(attempts), "useful": self.useful()}, separators=(",", ":"))

    def write(self) -> None:
        """Writes the file for the uploader and the next attempt; the journal will report a disk that refuses."""
        with contextlib.suppress(CnnJobsError):
            write_text(self.path, self.as_json() + "\n")


def merged(attempts: Sequence[Mapping[str, Any]], *, most: int = MOST_ATTEMPTS) -> list[dict[str, Any]]:
    """At most ``most`` rows: the oldest are added up into the first."""
    rows = [dict(each) for each in attempts]
    while len(rows) > most:
        oldest, second = rows.pop(0), rows[0]
        rows[0] = {**second, **{name: oldest[name] + second[name] for name in second if name != "attempt"}}
    return rows


def read_costs(*texts: str, steps_of_last: int = 0, last: int | None = None) -> list[AttemptCost]:
    """The attempts of the fullest of several texts (a file, a tag); none where no text can be read.

    ``steps_of_last``: what the journal shows of attempt number ``last``. A killed one did not record
    its last second, whose device seconds are estimated from those of its earlier steps.
    """
    costs = [_parse(text) for text in texts]
    fullest = max(costs, key=lambda attempts: sum(each.wall_seconds for each in attempts), default=[])
    if fullest and last in (None, fullest[-1].attempt) and steps_of_last > fullest[-1].steps:
        fullest[-1] = _with_steps(fullest[-1], steps_of_last)
    return fullest


def _with_steps(cost: AttemptCost, steps: int) -> AttemptCost:
    missing = cost.device_seconds * (steps / cost.steps - 1) if cost.steps else 0.0
    device = cost.device_seconds + min(missing, UNWRITTEN_S)
    return replace(cost, steps=steps, device_seconds=device, wall_seconds=max(device, cost.wall_seconds))


def _parse(text: str) -> list[AttemptCost]:
    try:
        return [AttemptCost(**each) for each in json.loads(text)["attempts"]]
    except (ValueError, KeyError, TypeError):
        return []
