"""Runs that are killed, and the comparison of what they come to."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from cnn_jobs.tracking import names
from cnn_jobs.training.checkpoint import load_checkpoint
from tests.helpers.forkserver import Ended, ForkServer
from tests.helpers.training import differences

# 36 of 40 pictures train: 4 steps an epoch, 12 in all, validated after every second one.
SMALL = ("--epochs", 3, "--batch-size", 9, "--early-stop-count", 0, "--threads", 1)
STEPS = 12
# Of a checkpoint: what the training is, as against how it was paid for.
STATE = ("model", "optimizer", "generators", "train_losses", "validations", "best", "step", "epoch", "batch")


@dataclass
class Outcome:
    """What a run is in the end: its rows in MLflow, its state, its attempts."""

    rows: list[tuple[str, int, float]]
    state: Mapping[str, Any]
    tags: Mapping[str, str]
    status: str
    runs: int
    clock_rows: list[tuple[str, int]] = field(default_factory=list)


@dataclass
class Tracked:
    """One data set, one MLflow server, and what it has of a run."""

    uri: str
    data: Path
    folder: Path

    def environment(self, key: str, **more: str) -> dict[str, str]:
        """A Job's pod: the key is its UID, so that the next pod need not wait for a heartbeat to stand still."""
        own = {"MLFLOW_TRACKING_URI": self.uri, "CNN_JOBS_STATE_DIR": str(self.state_dir(key)), "CNN_JOBS_JOB_UID": key}
        return {**own, **more}

    def state_dir(self, key: str) -> Path:
        """The state directory of the run's first machine."""
        return self.folder / f"state-{key}"

    def lose_state(self, key: str) -> None:
        """The pod's disk goes with the pod."""
        shutil.rmtree(self.state_dir(key))

    def run_id(self, task: str, key: str) -> str:
        """The key's run in MLflow."""
        return str(self._runs(task, key)[0].info.run_id)

    def outcome_tags(self, task: str, key: str) -> Mapping[str, str]:
        """The tags of the key's run."""
        tags: Mapping[str, str] = self._runs(task, key)[0].data.tags
        return tags

    def count_of_runs(self, task: str, key: str) -> int:
        """How many runs of the key MLflow has."""
        return len(self._runs(task, key))

    def _runs(self, task: str, key: str) -> Any:
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name(task)
        assert experiment
        return client.search_runs([experiment.experiment_id], f"tags.`cnn_jobs.run_key` = '{key}'")

    def outcome(self, task: str, key: str) -> Outcome:
        """What MLflow has of the run."""
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        found = self._runs(task, key)
        run = found[0]
        rows, clock_rows = [], []
        for name in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, name):
                if name.startswith(names.CLOCK_METRICS):
                    clock_rows.append((name, point.step))
                else:
                    rows.append((name, point.step, point.value))
        with TemporaryDirectory(dir=self.folder) as target:
            saved = load_checkpoint(Path(client.download_artifacts(run.info.run_id, "checkpoints/last.pt", target)))
        state = {name: saved[name] for name in STATE}
        return Outcome(sorted(rows), state, run.data.tags, run.info.status, len(found), sorted(clock_rows))


@dataclass
class Lab(Tracked):
    """And a fork server."""

    server: ForkServer

    def arguments(self, task: str, *more: object) -> list[object]:
        """The command line of a small training."""
        return ["train", task, "--data", self.data, "--experiment", task, *SMALL, *more]

    def train(self, task: str, key: str, *more: object, hook: str = "cheap_outputs", hook_args: Any = ()) -> Ended:
        """One attempt, to its end."""
        hook = f"tests.helpers.hooks:{hook}"
        return self.server.run(self.arguments(task, *more), self.environment(key), hook=hook, hook_args=hook_args)


def compare(reference: Outcome, other: Outcome) -> list[str]:
    """Where two runs are not the same; clock rows by name and step only."""
    lines = differences(dict(reference.state), dict(other.state))
    if reference.rows != other.rows:
        missing, extra = set(reference.rows) - set(other.rows), set(other.rows) - set(reference.rows)
        doubled = len(other.rows) - len(set(other.rows))
        lines.append(
            f"rows: {len(missing)} missing, {len(extra)} extra, {doubled} doubled: {sorted(missing | extra)[:4]}"
        )
    clock = [row for row in reference.clock_rows if row[0] == "train/images_per_second"]
    again = [row for row in other.clock_rows if row[0] == "train/images_per_second"]
    if len(again) != len(set(again)) or not set(again) <= set(clock):
        lines.append(f"clock rows: {again}, not among {clock}")
    if other.runs != 1:
        lines.append(f"{other.runs} runs of one key")
    return lines


def tensors_in(value: Any) -> int:
    """How many tensors a nested structure holds."""
    if isinstance(value, torch.Tensor):
        return 1
    if isinstance(value, dict):
        return sum(map(tensors_in, value.values()))
    return sum(map(tensors_in, value)) if isinstance(value, list | tuple) else 0
