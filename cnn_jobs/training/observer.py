"""What a run says of itself while it is under way, to whoever watches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the command line shows a run before torch is imported
    from cnn_jobs.runs.cost import RunCost
    from cnn_jobs.runs.setup import Run
    from cnn_jobs.tracking.recorder import JournalRecorder


class Recorder(Protocol):
    """Takes measurements. Called from the training thread: must return at once and never touch the network."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Metrics by name at a global optimiser step."""


class NullRecorder:
    """Records nothing."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Drops the values."""


class Recorders:
    """Passes every call on to each of several recorders, in order."""

    def __init__(self, *recorders: Recorder) -> None:
        self._recorders = recorders

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Metrics by name at a global optimiser step."""
        for recorder in self._recorders:
            recorder.metrics(values, step)


class Phase(StrEnum):
    """What a process does, in the order of a run; ``ended`` between two runs, and after the last."""

    STARTING = "starting"
    FEATURES = "features"
    TRAINING = "training"
    EVALUATION = "evaluation"
    OUTPUTS = "outputs"
    SHIPPING = "shipping"
    ENDED = "ended"


@dataclass(frozen=True)
class LiveAttempt:
    """An attempt under way, for other threads to read: nothing in it is ever locked or waited for.

    ``began``: when its process did, in seconds of the epoch. ``first_step``: the optimiser step that it goes on from.
    """

    run: Run
    began: float
    steps_per_epoch: int
    first_step: int
    recorder: JournalRecorder
    book: RunCost


class Watcher(Recorder, Protocol):
    """Sees how far a run is. Called in the training thread: must return at once."""

    def opened(self, live: LiveAttempt) -> None:
        """The attempt has its run, and is about to record."""

    def begin(self, name: str, steps: int) -> None:
        """The training of at most ``steps`` optimiser steps starts, or goes on."""

    def phase(self, phase: Phase, text: str) -> None:
        """What the run does now, in a few words."""

    def warn(self, text: str) -> None:
        """Something that the user should know, though the run goes on."""

    def end(self, state: str) -> None:
        """The run is over, or this attempt of it: one of ``endings.STATES``."""


class Watchers:
    """Passes every call on to each of several watchers, in order."""

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def opened(self, live: LiveAttempt) -> None:
        """To each."""
        for watcher in self._watchers:
            watcher.opened(live)

    def begin(self, name: str, steps: int) -> None:
        """To each."""
        for watcher in self._watchers:
            watcher.begin(name, steps)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """To each."""
        for watcher in self._watchers:
            watcher.metrics(values, step)

    def phase(self, phase: Phase, text: str) -> None:
        """To each."""
        for watcher in self._watchers:
            watcher.phase(phase, text)

    def warn(self, text: str) -> None:
        """To each."""
        for watcher in self._watchers:
            watcher.warn(text)

    def end(self, state: str) -> None:
        """To each."""
        for watcher in self._watchers:
            watcher.end(state)
