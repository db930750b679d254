"""Whole runs in the test's own process, against a real MLflow database."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.recipe import Recipe
from cnn_jobs.runs.setup import RunOptions, RunResult, Session
from cnn_jobs.runs.train import train_run as train_run_of_session
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tasks import TASKS, Task
from cnn_jobs.training.observer import LiveAttempt, Observer, Phase

TASK = TASKS["task3-arch2"]  # BatchNorm, dropout and Adam
RECIPE = replace(TASK.recipe, epochs=2, batch_size=8)


class RecordingObserver(Observer):
    """Keeps what it sees, and can request a stop after a number of steps."""

    def __init__(self, stop: StopRequest | None = None, after: int = 0) -> None:
        self.stop, self.after = stop, after
        self.phases: list[str] = []
        self.warnings: list[str] = []
        self.ended: list[str] = []

    def attempt_opened(self, live: LiveAttempt) -> None:
        self.live = live

    def training_started(self, name: str, steps: int) -> None:
        self.phases.append(name)

    def step_finished(self, step: int, loss: float) -> None:
        if self.stop and step == self.after:
            self.stop.record(signal.SIGTERM)

    def phase_changed(self, phase: Phase, text: str) -> None:
        self.phases.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def attempt_ended(self, state: str) -> None:
        self.ended.append(state)


def options(uri: str, tmp_path: Path, **changes: Any) -> RunOptions:
    """One CPU thread, and the state directory of this test."""
    return RunOptions(tracking_uri=uri, state_dir=tmp_path / "state", threads=1, device="cpu", **changes)


def session_of(
    task: Task,
    options: RunOptions,
    dataset: Dataset,
    observer: Observer | None = None,
    stop: StopRequest | None = None,
) -> Session:
    """A session of one process."""
    return Session(task, options, dataset, observer or RecordingObserver(), stop or StopRequest())


def train_run(
    task: Task,
    recipe: Recipe,
    options: RunOptions,
    dataset: Dataset,
    observer: Observer | None = None,
    stop: StopRequest | None = None,
) -> RunResult:
    """One run in a session of its own."""
    return train_run_of_session(session_of(task, options, dataset, observer, stop), recipe)


def client(uri: str) -> Any:
    """MLflow's own client."""
    from mlflow import MlflowClient

    return MlflowClient(uri)


def only_run(uri: str) -> Any:
    """The only run of the default experiment, as MLflow has it."""
    found = client(uri).search_runs([client(uri).get_experiment_by_name("cnn-jobs").experiment_id])
    assert len(found) == 1
    return found[0]
