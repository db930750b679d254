"""Observers of a run's progress: a base class whose methods do nothing, and a fan-out. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Protocol


class Phase(StrEnum):
    """What a process does, in the order of a run; ``ENDED`` between two runs and after the last."""

    STARTING = "starting"
    FEATURES = "features"
    TRAINING = "training"
    EVALUATION = "evaluation"
    OUTPUTS = "outputs"
    SHIPPING = "shipping"
    ENDED = "ended"


class LiveAttempt(Protocol):
    """A running attempt, as other threads may read it at any time: nothing here locks or waits."""

    run_key: str
    device_type: str  # "cpu" or "cuda"
    batch_size: int
    epochs: int
    steps_per_epoch: int
    first_step: int  # the optimiser step that it continues from

    @property
    def number(self) -> int:
        """The attempt's number among those of the run."""

    @property
    def steps_done(self) -> int:
        """Optimiser steps of this attempt."""

    @property
    def checkpointed_at(self) -> float:
        """When the last checkpoint was written, or else when the attempt began, in seconds since 1970."""

    def costs(self) -> Mapping[str, float]:
        """Total costs of the run so far, by metric name."""

    def backlog(self) -> tuple[int, float]:
        """Records that MLflow has not acknowledged, and for how many seconds it has lacked any."""

    def upload_errors(self) -> Mapping[str, int]:
        """Failed calls to MLflow, by kind."""


class Observer:
    """Is notified of a run's progress; subclasses override the methods that they need.

    The training thread calls it: a method must return at once and never touch the network.
    """

    def attempt_opened(self, live: LiveAttempt) -> None:
        """The attempt owns its run and is about to record."""

    def training_started(self, name: str, steps: int) -> None:
        """The training of at most ``steps`` optimiser steps starts or continues."""

    def step_finished(self, step: int, loss: float) -> None:
        """The loss of optimiser step ``step`` (cross entropy, nats) was read from the device."""

    def speed_measured(self, step: int, images_per_second: float) -> None:
        """Speed of the training steps since the validation before, validations excluded."""

    def validated(self, step: int, loss: float, accuracy: float) -> None:
        """Figures on the validation set after ``step`` steps; loss in nats, accuracy in [0, 1]."""

    def phase_changed(self, phase: Phase, text: str) -> None:
        """The run enters a phase, or makes progress in it; ``text`` is a short description."""

    def warn(self, text: str) -> None:
        """Something the user should know; the run continues."""

    def attempt_ended(self, state: str) -> None:
        """The attempt is over; ``state`` is one of ``run_status.STATES``."""


def fan_out(*observers: Observer) -> Observer:
    """One observer that passes every call to each of several, in order."""
    combined = Observer()
    for name in [name for name in vars(Observer) if not name.startswith("_")]:
        calls = [getattr(each, name) for each in observers]
        setattr(combined, name, partial(_call_each, calls))
    return combined


def _call_each(calls: Sequence[Callable[..., None]], *arguments: object) -> None:
    for call in calls:
        call(*arguments)
