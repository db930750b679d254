"""What a command trains with, and one run of it: built once, before anything is recorded."""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cnn_jobs.data.batches import ImageSet, Parts, place_on_device
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.distributed.rendezvous import Rendezvous
from cnn_jobs.errors import RecipeError
from cnn_jobs.models.weights import Weights, open_weights
from cnn_jobs.networks.spec import ConvNet
from cnn_jobs.networks.table import describe
from cnn_jobs.recipe import Recipe
from cnn_jobs.system.environment import version_of
from cnn_jobs.system.process import claim_start
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tasks import Task
from cnn_jobs.training.device import (
    Placement,
    available_threads,
    configure_arithmetic,
    device_name,
    select_device,
)
from cnn_jobs.training.feature_cache import FeatureCache, FeaturePlan
from cnn_jobs.training.loop import DeviceTime, validation_batches
from cnn_jobs.training.observer import Observer
from cnn_jobs.training.process_group import backend_of
from cnn_jobs.training.state import TrainState, new_state


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
    run_key: str = ""  # "": a new run with a unique key
    key_from_job: bool = False  # Kubernetes starts a Job's next pod only when the one before is gone
    resume: str = "auto"
    checkpoint_every_s: float = 60.0
    trunk_cache: str = "auto"
    graph: bool = True  # on CUDA
    fast_convolutions: bool = True  # on a CPU
    state_outlives_process: bool = True


@dataclass(frozen=True)
class Session:
    """What all runs of one command share."""

    task: Task
    options: RunOptions
    dataset: Dataset
    observer: Observer
    stop: StopRequest
    rendezvous: Rendezvous = field(default_factory=Rendezvous)
    features: FeatureCache = field(init=False)

    def __post_init__(self) -> None:
        features = FeatureCache(self.options.state_dir, self.options.trunk_cache)
        object.__setattr__(self, "features", features)

    def with_options(self, **changes: Any) -> Session:
        """The same session with other options; the feature cache is shared."""
        other = replace(self, options=replace(self.options, **changes))
        object.__setattr__(other, "features", self.features)
        return other


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of a finished run; ``metrics`` are the final ones, ``best/...`` and ``last/...``."""

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
    """One run: its recipe, its data on the device that trains, and what this attempt has spent on it."""

    session: Session
    recipe: Recipe
    placement: Placement
    threads: int
    data: Parts[ImageSet]
    weights: Weights | None
    began: float = field(default_factory=time.monotonic)
    spent: DeviceTime = field(default_factory=DeviceTime)
    key: str = ""

    def __post_init__(self) -> None:
        self.key = self.key or self.options.run_key or uuid.uuid4().hex[:16]

    @property
    def task(self) -> Task:
        """What it trains."""
        return self.session.task

    @property
    def options(self) -> RunOptions:
        """How and where it is run."""
        return self.session.options

    @property
    def dataset(self) -> Dataset:
        """The data set."""
        return self.session.dataset

    @property
    def name(self) -> str:
        """The run's name in MLflow."""
        return self.options.run_name or f"{self.task.name}-seed{self.recipe.seed}"

    @property
    def folder(self) -> Path:
        """The run's folder in the state directory."""
        return self.options.state_dir / self.key

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, height and width of the data set's images."""
        channels, height, width = self.dataset.train_images.shape[1:]
        return channels, height, width

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self.data.steps_per_epoch(self.recipe.batch_size)

    @property
    def processes(self) -> int:
        """How many processes train it."""
        return self.session.rendezvous.world.size

    @property
    def backend(self) -> str:
        """How the processes communicate, "" for a single one."""
        return backend_of(self.placement.device) if self.processes > 1 else ""

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the pretrained weights, "" where there are none."""
        return self.weights.digest if self.weights else ""

    def identity(self) -> dict[str, Any]:
        """What identifies the run in its tags and checkpoints."""
        return {
            "task": self.task.name,
            "run_key": self.key,
            "recipe_hash": self.task.recipe_hash(self.recipe, self.weights_digest),
            "group_hash": self.task.group_hash(self.recipe, self.dataset.digest, self.weights_digest),
            "data_digest": self.dataset.digest,
            "weights_digest": self.weights_digest,
        }

    def facts(self) -> dict[str, str]:
        """What has to be the same in every process of the run."""
        identity = {name: str(value) for name, value in self.identity().items()}
        if not self.options.run_key:
            del identity["run_key"]
        return {
            **identity,
            "device": self.placement.device.type,
            "fast": str(self.options.fast),
            "fast_convolutions": str(self.options.fast_convolutions),
            **{name: version_of(name) for name in ("cnn-jobs", "torch", "torchvision", "numpy")},
            "python": platform.python_version(),
            "processes": str(self.processes),
        }

    def exclusive_device(self) -> str:
        """The unique name of the device that NCCL needs for this process alone; "" where it may be shared."""
        if self.backend != "nccl":
            return ""
        properties = torch.cuda.get_device_properties(self.placement.device)
        return f"{properties.name} {properties.uuid}"

    def new_state(self) -> TrainState:
        """The state before the first step; configures torch for the run's threads."""
        configure_arithmetic(self.threads, fast=self.options.fast)
        weights = self.weights.tensors if self.weights else None
        classes = len(self.dataset.classes)
        fast = self.options.fast_convolutions
        return new_state(
            self.task.network, self.recipe, self.image, classes, self.placement, weights, fast_convolutions=fast
        )

    def plan_features(self, state: TrainState) -> FeaturePlan | None:
        """Where the features of the frozen backbone are kept; ``None`` without one. Raises ``UserError``."""
        if state.backbone is None:
            return None
        facts = {
            "transform": self.task.transform.as_dict(),
            "data": self.dataset.digest,
            # Beside what they are of, what decides their last bits.
            "device": device_name(self.placement.device),
            "threads": self.threads,
            "torch": version_of("torch"),
            "fast": self.options.fast,
        }
        recipe = self.recipe
        return self.session.features.plan(state.backbone, self.data, recipe.precision, recipe.augmentation, facts)


def prepare(session: Session, recipe: Recipe) -> Run:
    """Checks everything that can be refused, before anything is recorded: a mistake creates no run.

    Raises ``UserError`` and its subclasses.
    """
    task, options, dataset, world = session.task, session.options, session.dataset, session.rendezvous.world
    task.check(recipe)
    world.check_batch(recipe.batch_size)
    placement = select_device(options.device, fast=options.fast, index=world.local_rank)
    if world.distributed:
        check_distributed(task, placement)
    threads = options.threads or max(1, available_threads() // world.local_size)
    weights = open_weights(recipe.weights)
    began = claim_start()
    data = place_on_device(dataset, recipe, task.transform, placement.device, placement.memory_format)
    run = Run(session, recipe, placement, threads, data, weights, began, DeviceTime(devices=world.size))
    describe(task.network, run.image, len(dataset.classes))
    validation_batches(run.steps_per_epoch, recipe, len(data.train))
    return run


def check_distributed(task: Task, placement: Placement) -> None:
    """Raises ``RecipeError`` for BatchNorm on CPUs: torch synchronises its statistics on CUDA only, and statistics over
    a part of the batch would make it another training."""
    network = task.network
    has_batch_norm = not isinstance(network, ConvNet) or any(block.batch_norm for block in network.blocks)
    if placement.device.type == "cpu" and has_batch_norm:
        raise RecipeError(
            f"{task.name} has BatchNorm, whose statistics several processes can share on CUDA only; "
            "train it in one process or with --device cuda"
        )
