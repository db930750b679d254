"""What every process of a run does before it touches the run: all that can be refused is refused here."""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cnn_jobs.data.batches import ImageSet, Parts, place_on_device
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.distributed.world import World
from cnn_jobs.errors import RecipeError
from cnn_jobs.models.weights import Weights, open_weights
from cnn_jobs.networks.spec import ConvNet, Network
from cnn_jobs.networks.table import describe
from cnn_jobs.recipe import Recipe
from cnn_jobs.system import environment
from cnn_jobs.system.process import claim_start
from cnn_jobs.tasks import Task
from cnn_jobs.training.device import Placement, available_threads, select_device
from cnn_jobs.training.loop import DeviceTime, validation_batches
from cnn_jobs.training.process_group import backend_of


@dataclass(frozen=True, kw_only=True)
class RunOptions:
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
    options: RunOptions
    dataset: Dataset
    placement: Placement
    threads: int
    began: float = field(default_factory=time.monotonic)
    weights: Weights | None = None
    key: str = ""
    saved_at: float = 0.0  # the last checkpoint of this attempt, in seconds of the epoch
    ledger: DeviceTime = field(default_factory=DeviceTime)
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


def prepare(
    task: Task, recipe: Recipe, options: RunOptions, dataset: Dataset, world: World
) -> tuple[Run, Parts[ImageSet], int]:
    """The run, its data on the device that trains, and the steps of an epoch.

    Raises ``UserError`` of many kinds: what can never work as asked.
    """
    task.check(recipe)
    world.check_batch(recipe.batch_size)
    placement = select_device(options.device, fast=options.fast, index=world.local_rank)
    if world.distributed:
        check_network(task, placement)
    threads = options.threads or max(1, available_threads() // world.local_size)
    weights = open_weights(recipe.weights)
    ledger = DeviceTime(devices=world.size)
    run = Run(task, recipe, options, dataset, placement, threads, claim_start(), weights, ledger=ledger)
    run.processes, run.backend = world.size, backend_of(placement.device) if world.distributed else ""
    data = place_on_device(dataset, recipe, task.transform, placement.device, placement.memory_format)
    describe(task.network, run.image, len(dataset.classes))
    steps = data.steps_per_epoch(recipe.batch_size)
    validation_batches(steps, recipe, len(data.train))
    return run, data, steps


def check_network(task: Task, placement: Placement) -> None:
    """Raises ``RecipeError`` for BatchNorm on CPUs: torch can take its statistics over several processes on CUDA alone,
    and over a part of the batch they would make another training of it."""
    if placement.device.type == "cpu" and _has_batch_norm(task.network):
        raise RecipeError(
            f"{task.name} has BatchNorm, whose statistics several processes share on CUDA only; "
            "train it in one process or with --device cuda"
        )


def _has_batch_norm(network: Network) -> bool:
    return not isinstance(network, ConvNet) or any(block.batch_norm for block in network.blocks)


def facts_of(run: Run) -> dict[str, str]:
    """What has to be the same in every process of a run."""
    identity = {name: str(value) for name, value in run.identity().items() if name != "run_key" or run.options.run_key}
    versions = {name: environment.version_of(name) for name in ("cnn-jobs", "torch", "torchvision", "numpy")}
    return {
        **identity,
        "device": run.placement.device.type,
        "fast": str(run.options.fast),
        **versions,
        "python": platform.python_version(),
        "processes": str(run.processes),
    }


def device_of(run: Run) -> str:
    """The device that NCCL wants for this process alone, by a name that no other has; "" where it may be shared."""
    if run.backend != "nccl":
        return ""
    properties = torch.cuda.get_device_properties(run.placement.device)
    return f"{properties.name} {properties.uuid}"
