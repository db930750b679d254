"""Runs that are killed and continued, and the comparison of their outcomes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from cnn_jobs.tracking import names
from cnn_jobs.training.checkpoint import load_checkpoint
from tests.helpers import forkserver
from tests.helpers.forkserver import Child, Completed
from tests.helpers.tracking import client, runs_in
from tests.helpers.training import STATE, differences

# 36 of 40 images train: 4 steps an epoch, 12 in all, validated after every second one.
SMALL = ("--epochs", 3, "--batch-size", 9, "--early-stop-count", 0, "--threads", 1)
# Exit code of a training under way, by the signal that ends it.
EXIT_CODES = {"SIGKILL": -9, "SIGTERM": 75}


@dataclass
class Outcome:
    """A run as MLflow has it: its rows, its final state, its tags. Of rows that depend on a clock, name and step."""

    rows: list[tuple[str, int, float]]
    state: Mapping[str, Any]
    tags: Mapping[str, str]
    status: str
    runs: int
    clock_rows: list[tuple[str, int]] = field(default_factory=list)

    def losses(self) -> dict[int, float]:
        """The training loss of each step."""
        return {step: value for name, step, value in self.rows if name == "train/loss"}


def outcome_of(uri: str, experiment: str, key: str) -> Outcome:
    """The outcome of the key's run."""
    found, remote = runs_in(uri, experiment, key), client(uri)
    run = found[0]
    rows, clock_rows = [], []
    for name in run.data.metrics:
        for point in remote.get_metric_history(run.info.run_id, name):
            if name.startswith(names.CLOCK_METRICS):
                clock_rows.append((name, point.step))
            else:
                rows.append((name, point.step, point.value))
    with TemporaryDirectory() as folder:
        saved = load_checkpoint(Path(remote.download_artifacts(run.info.run_id, names.LAST_CHECKPOINT, folder)))
    state = {name: saved[name] for name in STATE}
    return Outcome(sorted(rows), state, run.data.tags, run.info.status, len(found), sorted(clock_rows))


def compare(reference: Outcome, other: Outcome) -> list[str]:
    """Where two outcomes differ; none where they are the same run."""
    lines = differences(dict(reference.state), dict(other.state))
    if reference.rows != other.rows:
        missing, extra = set(reference.rows) - set(other.rows), set(other.rows) - set(reference.rows)
        duplicates = len(other.rows) - len(set(other.rows))
        lines.append(
            f"rows: {len(missing)} missing, {len(extra)} extra, {duplicates} duplicate: {sorted(missing | extra)[:4]}"
        )
    expected = [row for row in reference.clock_rows if row[0] == names.TRAIN_SPEED]
    found = [row for row in other.clock_rows if row[0] == names.TRAIN_SPEED]
    if len(found) != len(set(found)) or not set(found) <= set(expected):
        lines.append(f"clock rows: {found}, not among {expected}")
    if other.runs != 1:
        lines.append(f"{other.runs} runs of one key")
    return lines


@dataclass
class BaseLab:
    """One MLflow server and one data set. Each task has an experiment of its name."""

    uri: str
    data: Path
    folder: Path

    def environment(self, key: str, **more: str) -> dict[str, str]:
        """That of a Job's pod: the key is the Job's UID, so that the next pod need not watch a heartbeat."""
        own = {"MLFLOW_TRACKING_URI": self.uri, "CNN_JOBS_STATE_DIR": str(self.state_dir(key)), "CNN_JOBS_JOB_UID": key}
        return {**own, **more}

    def state_dir(self, key: str) -> Path:
        """The state directory of the run's first machine."""
        return self.folder / f"state-{key}"

    def lose_state(self, key: str) -> None:
        """Deletes the state directory, as with a pod."""
        shutil.rmtree(self.state_dir(key))

    def run_of(self, task: str, key: str) -> Any:
        """The key's run in MLflow, ``None`` where there is none."""
        found = runs_in(self.uri, task, key)
        assert len(found) <= 1
        return found[0] if found else None

    def outcome(self, task: str, key: str) -> Outcome:
        """The outcome of the key's run."""
        return outcome_of(self.uri, task, key)


@dataclass
class Lab(BaseLab):
    """Runs the command in children of the fork server."""

    references: dict[str, Outcome] = field(default_factory=dict)

    def start_child(
        self, arguments: Sequence[object], environment: Mapping[str, str], hook: str = "", hook_args: Any = ()
    ) -> Child:
        """Starts any command: ``forkserver.start``."""
        return forkserver.start(self.folder / "children", arguments, environment, hook, hook_args)

    def start(
        self, task: str, key: str, *more: object, hook: str = "cheap_outputs", hook_args: Any = (), **environment: str
    ) -> Child:
        """Starts one attempt."""
        arguments = ["train", task, "--data", self.data, "--experiment", task, *SMALL, *more]
        return self.start_child(arguments, self.environment(key, **environment), hook, hook_args)

    def train(self, task: str, key: str, *more: object, **settings: Any) -> Completed:
        """One attempt to its end; ``settings`` as in ``start``."""
        return self.start(task, key, *more, **settings).wait()

    def reference(self, task: str, *more: object, **settings: Any) -> Outcome:
        """The outcome of an undisturbed run; trained once for each task."""
        if task not in self.references:
            done = self.train(task, f"{task}-reference", *more, **settings)
            assert done.code == 0, done.stderr
            self.references[task] = self.outcome(task, f"{task}-reference")
        return self.references[task]


def tensors_in(value: Any) -> int:
    """How many tensors a nested structure holds."""
    if isinstance(value, torch.Tensor):
        return 1
    if isinstance(value, dict):
        return sum(map(tensors_in, value.values()))
    return sum(map(tensors_in, value)) if isinstance(value, list | tuple) else 0
