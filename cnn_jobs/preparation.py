"""What every process of a run does before it touches the run: all that can be refused is refused here."""

from __future__ import annotations

import platform

import torch

from cnn_jobs.data.batches import ImageSet, Parts, place_on_device
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.distributed.world import World
from cnn_jobs.errors import RecipeError
from cnn_jobs.models.describe import describe
from cnn_jobs.models.spec import ConvNet, Network
from cnn_jobs.models.weights import open_weights
from cnn_jobs.process import claim_start
from cnn_jobs.recipe import Recipe
from cnn_jobs.run import JobOptions, Run
from cnn_jobs.tasks import Task
from cnn_jobs.tracking import lineage
from cnn_jobs.training.device import Placement, available_threads, select_device
from cnn_jobs.training.distributed import backend_of
from cnn_jobs.training.loop import Ledger, validation_batches


def prepare(
    task: Task, recipe: Recipe, options: JobOptions, dataset: Dataset, world: World
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
    ledger = Ledger(devices=world.size)
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
    versions = {name: lineage.version_of(name) for name in ("cnn-jobs", "torch", "torchvision", "numpy")}
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
