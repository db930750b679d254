"""A run under way, and what it is made from and comes to: plain data that the parts of a job share."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.models.weights import Weights
from cnn_jobs.recipe import Recipe
from cnn_jobs.tasks import Task
from cnn_jobs.training.device import Placement
from cnn_jobs.training.loop import Ledger


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How and where a recipe is run; nothing here is meant to change its result (``fast`` may, on CUDA)."""

    tracking_uri: str
    state_dir: Path
    device: str = "auto"
    fast: bool = False
    threads: int = 0  # 0: as many as this process may use
    experiment: str = "cnn-jobs"
    run_name: str = ""
    ship_deadline_s: float = 60.0
    parent_key: str = ""
    group: str = ""
    run_key: str = ""  # "": a new run, whose key nobody else can have
    key_from_job: bool = False  # Kubernetes starts the next pod of a Job only when the one before is gone
    resume: str = "auto"
    checkpoint_every_s: float = 60.0
    trunk_cache: str = "auto"
    graph: bool = True  # on CUDA
    state_outlives_process: bool = True


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a finished run came to; ``metrics`` are the final ones, ``best/...`` and ``last/...``."""

    run_id: str
    url: str
    name: str
    recipe: Recipe
    metrics: Mapping[str, float]
    steps: int
    stopped_early: bool
    seconds: float
    note: str = ""


@dataclass
class Run:
    """One run under way."""

    task: Task
    recipe: Recipe
    options: JobOptions
    dataset: Dataset
    placement: Placement
    threads: int
    began: float = field(default_factory=time.monotonic)
    weights: Weights | None = None
    key: str = ""
    saved_at: float = 0.0  # the last checkpoint of this attempt, in seconds of the epoch
    ledger: Ledger = field(default_factory=Ledger)
    processes: int = 1
    backend: str = ""  # that the processes talk by, "" for one alone

    def __post_init__(self) -> None:
        self.key = self.key or self.options.run_key or uuid.uuid4().hex[:16]

    @property
    def name(self) -> str:
        """The run's name in MLflow."""
        return self.options.run_name or f"{self.task.name}-seed{self.recipe.seed}"

    @property
    def folder(self) -> Path:
        """The run's own folder in the state directory."""
        return self.options.state_dir / self.key

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, height and width of the data set's images."""
        channels, height, width = self.dataset.train_images.shape[1:]
        return channels, height, width

    def identity(self) -> dict[str, Any]:
        """What a checkpoint and the run's tags say of where they belong."""
        return {
            "task": self.task.name,
            "run_key": self.key,
            "recipe_hash": self.task.recipe_hash(self.recipe, self.weights_digest),
            "group_hash": self.task.group_hash(self.recipe, self.dataset.digest, self.weights_digest),
            "data_digest": self.dataset.digest,
            "weights_digest": self.weights_digest,
        }

    @property
    def weights_digest(self) -> str:
        """Of the pretrained weights, "" where there are none."""
        return self.weights.digest if self.weights else ""
