"""What a run records in MLflow: its origin, its history, its costs, its description."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.models.build import Backbone
from cnn_jobs.networks.spec import ResNet18
from cnn_jobs.networks.table import as_markdown, describe
from cnn_jobs.recipe import Recipe
from cnn_jobs.runs.artifacts import results_markdown
from cnn_jobs.runs.cost import RunCost
from cnn_jobs.runs.setup import Run
from cnn_jobs.system.environment import cpu_name, git_facts, lineage, pod_facts, version_of
from cnn_jobs.system.files import make_folder, write_text
from cnn_jobs.system.redaction import redact_all
from cnn_jobs.tasks import Task
from cnn_jobs.tracking import names
from cnn_jobs.tracking.recorder import JournalRecorder
from cnn_jobs.tracking.records import DatasetInput
from cnn_jobs.tracking.run_folder import START_COMPLETE
from cnn_jobs.training.checkpoint import save_checkpoint
from cnn_jobs.training.device import device_name
from cnn_jobs.training.feature_cache import FeaturePlan
from cnn_jobs.training.state import TrainState

TORCH_CONVOLUTIONS = "torch's own"
POD_TAGS = {names.JOB_UID: "job_uid", names.COMPLETION_INDEX: "completion_index", names.POD: "pod", names.NODE: "node"}


def first_tags(run: Run) -> dict[str, str]:
    """The tags with which the run is created."""
    return {
        **{names.PREFIX + name: str(value) for name, value in run.identity().items()},
        names.GROUP: run.options.group or run.key,
        names.DATA: run.dataset.name,
        names.SYNTHETIC_DATA: str(run.dataset.synthetic).lower(),
        names.SOURCE_NAME: "cnn-jobs",
        names.SOURCE_TYPE: "LOCAL",
        names.NOTE: note(run.task, run.recipe, run.dataset),
    }


def record_attempt(run: Run, recorder: JournalRecorder, plan: FeaturePlan | None = None) -> None:
    """Where this attempt runs, and whether it keeps the frozen backbone's features."""
    git, facts = git_facts(), pod_facts()
    recorder.tags(
        {
            **({names.FEATURE_CACHE: plan.text} if plan else {}),
            **({names.WEIGHTS: absolute_uri(run.recipe.weights)} if run.weights else {}),
            names.GIT_COMMIT: git["commit"],
            names.GIT_DIRTY: git["dirty"],
            names.DEVICE: device_name(run.placement.device),
            names.THREADS: run.threads,
            names.DETERMINISTIC: not run.options.fast,
            **({names.WORLD_SIZE: run.processes, names.BACKEND: run.backend} if run.backend else {}),
            **{tag: facts[name] for tag, name in POD_TAGS.items() if name in facts},
        }
    )


def record_start(run: Run, recorder: JournalRecorder, backbone: Backbone | None = None) -> None:
    """Params, data set, lineage, frozen weights and the network's table, before the first step of the run."""
    # The weights by name: another attempt may find them elsewhere, and a param cannot change.
    weights = run.weights.name if run.weights else run.recipe.weights
    recorder.params({"task": run.task.name, **run.recipe.as_dict(), "weights": weights})
    dataset = run.dataset
    profile = {
        "train_images": len(dataset.train_images),
        "test_images": len(dataset.test_images),
        "image": list(run.image),
        "classes": list(dataset.classes),
        "synthetic": dataset.synthetic,
    }
    uri = absolute_uri(dataset.uri)
    recorder.dataset(DatasetInput(dataset.name, dataset.digest, uri, profile))
    content = {
        **run.identity(),
        "recipe": run.recipe.as_dict(),
        "data": {"uri": uri, "digest": dataset.digest, **profile},
        "weights": {"uri": absolute_uri(run.recipe.weights), "digest": run.weights_digest},
        **lineage(device_name(run.placement.device), run.threads),
        "convolutions": machine(run).get("convolutions", TORCH_CONVOLUTIONS),
    }
    folder = make_folder(run.folder / "artifacts")
    path = write_text(folder / names.LINEAGE, json.dumps(redact_all(content), indent=2) + "\n")
    recorder.artifact(path, names.LINEAGE)
    if backbone:
        # Once, and not in every checkpoint: its weights never change.
        to = names.frozen_checkpoint(backbone.digest())
        recorder.artifact(save_checkpoint(run.folder / to, {"model": backbone.layers.state_dict()}), to)
    table = as_markdown(describe(run.task.network, run.image, len(dataset.classes)))
    # Last: it marks that all of the above is recorded.
    recorder.artifact(write_text(folder / START_COMPLETE, table), START_COMPLETE)


def record_history(state: TrainState, recorder: JournalRecorder) -> None:
    """Every measurement in a checkpoint's history; the uploader leaves out what MLflow has."""
    for step, loss in enumerate(state.train_losses, start=1):
        recorder.step_finished(step, loss)
    for each in state.validations:
        recorder.validated(each.step, each.loss, each.accuracy)


def record_costs(cost: RunCost, step: int, recorder: JournalRecorder) -> None:
    """What the run cost: each attempt at its number as step, and all together at the run's last step."""
    for each in cost.attempts():
        values = {
            names.ATTEMPT_STEPS: each.steps,
            names.ATTEMPT_DEVICE_SECONDS: each.device_seconds,
            names.ATTEMPT_WALL_SECONDS: each.wall_seconds,
        }
        recorder.metrics(values, each.attempt)
    recorder.metrics(cost.totals(), step)


def machine(run: Run, plan: FeaturePlan | None = None) -> dict[str, Any]:
    """What has to be the same for a resumed run to be bit-identical; ``with_defaults`` completes an older one."""
    convolutions = "fast" if run.options.fast_convolutions else TORCH_CONVOLUTIONS
    return {
        **({"features": plan.computed} if plan else {}),
        **({"convolutions": convolutions} if run.placement.device.type == "cpu" else {}),
        "cpu": cpu_name(),
        "device": device_name(run.placement.device),
        "torch": version_of("torch"),
        "threads": run.threads,
        "processes": run.processes,
    }


def with_defaults(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """``machine`` of a checkpoint, with the values of keys that are newer than it."""
    # Their convolutions added the bias behind the pooling, and dropout drew other numbers.
    on_cpu = {"convolutions": "fast, of an earlier version"} if recorded["device"].startswith("cpu") else {}
    return {"processes": 1, **on_cpu, **recorded}


def note(task: Task, recipe: Recipe, dataset: Dataset, metrics: Mapping[str, float] | None = None) -> str:
    """The run's description in Markdown: task, data and recipe and, given ``metrics``, its results beside the
    reference."""
    images = f"{len(dataset.train_images):,} training and {len(dataset.test_images):,} test images"
    drawn = " (synthetic pictures that the package draws itself)" if dataset.synthetic else ""
    lines = [
        f"**{task.name}** - {task.title}",
        "",
        f"Data: `{dataset.name}`{drawn}, {images}, digest `{dataset.digest[:12]}`.",
        f"Recipe: {recipe.optimizer} at learning rate {recipe.lr:g}, batch size {recipe.batch_size}, "
        f"at most {recipe.epochs} epochs, {recipe.precision}, seed {recipe.seed}.",
    ]
    if isinstance(task.network, ResNet18):
        lines.append(f"Starts from the weights `{recipe.weights}`; all layers but layer4 and the last are frozen.")
    if metrics:
        lines += ["", results_markdown(metrics)]
        # The reference is of CIFAR-10: beside synthetic pictures it would mislead.
        if not dataset.synthetic and (reference := reference_line(task)):
            lines.append(reference)
    return "\n".join(lines)


def reference_line(task: Task) -> str:
    """The course report's figures for the last model, in one line; "" where it gives none."""
    reference = task.reference
    named = {
        "training accuracy": reference.train_accuracy,
        "validation accuracy": reference.val_accuracy,
        "test accuracy": reference.test_accuracy,
        "training loss": reference.train_loss,
    }
    given = [f"{name} {value:g}" for name, value in named.items() if value is not None]
    return f"Course report: {', '.join(given)}." if given else ""


def absolute_uri(uri: str) -> str:
    """The URI of a data set or weights, as it is understood from any folder."""
    path = Path(uri).expanduser()
    return str(path.resolve()) if "://" not in uri and (path.is_file() or "/" in uri) and path.exists() else uri
