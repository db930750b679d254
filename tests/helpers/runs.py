"""Whole runs in this process, against a real MLflow database."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.recipe import Recipe
from cnn_jobs.runs import artifacts
from cnn_jobs.runs.setup import RunOptions, RunResult, Session
from cnn_jobs.runs.train import train_run as train_run_of_session
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tasks import TASKS, Task
from cnn_jobs.training.observer import LiveAttempt, Observer, Phase

TASK = TASKS["task3-arch2"]  # BatchNorm, dropout and Adam
# 36 of 40 images train: 4 steps an epoch, validated after 2, 4, 6 and 8 of them.
RECIPE = replace(TASK.recipe, epochs=2, batch_size=9)
STEPS = 8


class RecordingObserver(Observer):
    """Keeps what it sees. With ``stop_after``, requests a stop at that step."""

    def __init__(self, stop_after: int = 0) -> None:
        self.stop, self.stop_after = StopRequest(), stop_after
        self.phases: list[str] = []
        self.warnings: list[str] = []
        self.ended: list[str] = []

    def attempt_opened(self, live: LiveAttempt) -> None:
        self.live = live

    def training_started(self, name: str, steps: int) -> None:
        self.phases.append(name)

    def step_finished(self, step: int, loss: float) -> None:
        if step == self.stop_after:
            self.stop.record(signal.SIGTERM)

    def phase_changed(self, phase: Phase, text: str) -> None:
        self.phases.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def attempt_ended(self, state: str) -> None:
        self.ended.append(state)


def cheap_outputs(patch: pytest.MonkeyPatch) -> None:
    """Skips plots and the MLflow model, which take most of the time of a small run."""
    patch.setattr(artifacts, "write_artifacts", lambda *args: (args[-1] / "history.csv").write_text("step\n"))


def options(uri: str, tmp_path: Path, **changes: Any) -> RunOptions:
    """One CPU thread, and the state directory of this test."""
    values = {"state_dir": tmp_path / "state", "threads": 1, "device": "cpu", **changes}
    return RunOptions(tracking_uri=uri, **values)


def session_of(
    options: RunOptions,
    dataset: Dataset,
    task: Task = TASK,
    observer: Observer | None = None,
    stop: StopRequest | None = None,
) -> Session:
    """A session of one process. A ``RecordingObserver`` brings its own stop request."""
    observer = observer or RecordingObserver()
    stop = stop or getattr(observer, "stop", None) or StopRequest()
    return Session(task, options, dataset, observer, stop)


def train_run(
    options: RunOptions, dataset: Dataset, task: Task = TASK, recipe: Recipe = RECIPE, **more: Any
) -> RunResult:
    """One run in a session of its own; ``more`` as in ``session_of``."""
    return train_run_of_session(session_of(options, dataset, task, **more), recipe)
