"""What a run says of itself in MLflow: where it comes from, what it spent, how it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cnn_jobs.cost_book import CostBook
from cnn_jobs.environment import pod_tags
from cnn_jobs.files import make_folder, write_text
from cnn_jobs.models.describe import as_markdown, describe
from cnn_jobs.models.resnet import Trunk
from cnn_jobs.reporting import description
from cnn_jobs.run import Run
from cnn_jobs.tracking import lineage
from cnn_jobs.tracking.left_behind import START_COMPLETE
from cnn_jobs.tracking.recorder import JournalRecorder
from cnn_jobs.tracking.records import DatasetInput
from cnn_jobs.training.checkpoint import save_checkpoint
from cnn_jobs.training.state import TrainState
from cnn_jobs.trunk_features import FeaturePlan


def first_tags(run: Run) -> dict[str, str]:
    """The tags that the run is made with."""
    identity = {f"cnn_jobs.{key}": str(value) for key, value in run.identity().items()}
    return {
        **identity,
        "cnn_jobs.group": run.options.group or run.key,
        "cnn_jobs.data": run.dataset.name,
        "cnn_jobs.synthetic_data": str(run.dataset.synthetic).lower(),
        "mlflow.source.name": "cnn-jobs",
        "mlflow.source.type": "LOCAL",
        "mlflow.note.content": description.note(run.task, run.recipe, run.dataset),
    }


def record_attempt(run: Run, recorder: JournalRecorder, plan: FeaturePlan | None = None) -> None:
    """Where this attempt runs, and whether it keeps the frozen trunk's features."""
    git = lineage.git_facts()
    recorder.tags(
        {
            **({"cnn_jobs.trunk_cache": plan.text} if plan else {}),
            **({"cnn_jobs.weights": lasting_uri(run.recipe.weights)} if run.weights else {}),
            "mlflow.source.git.commit": git["commit"],
            "cnn_jobs.git_dirty": git["dirty"],
            "cnn_jobs.device": lineage.device_name(run.placement.device),
            "cnn_jobs.threads": run.threads,
            "cnn_jobs.deterministic": not run.options.fast,
            **({"cnn_jobs.world_size": run.processes, "cnn_jobs.backend": run.backend} if run.backend else {}),
            **pod_tags(),
        }
    )


def record_start(run: Run, recorder: JournalRecorder, frozen: Trunk | None = None) -> None:
    """Params, data set, lineage, frozen weights and the network's table, before the first step of the run."""
    # The weights by what they are: an attempt elsewhere may find them in another place, and a param cannot change.
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
    uri = lasting_uri(dataset.uri)
    recorder.dataset(DatasetInput(dataset.name, dataset.digest, uri, profile))
    facts = lineage.collect(run.placement.device, run.threads)
    data_facts = {"uri": uri, "digest": dataset.digest, **profile}
    origin = {"uri": lasting_uri(run.recipe.weights), "digest": run.weights_digest}
    content = {**run.identity(), "recipe": run.recipe.as_dict(), "data": data_facts, "weights": origin, **facts}
    folder = make_folder(run.folder / "artifacts")
    path = write_text(folder / "lineage.json", json.dumps(content, indent=2) + "\n")
    recorder.artifact(path, path.name)
    if frozen:
        # Once, and not in every checkpoint: they never change.
        path = save_checkpoint(run.folder / frozen_file(frozen), {"model": frozen.layers.state_dict()})
        recorder.artifact(path, frozen_file(frozen))
    table = as_markdown(describe(run.task.network, run.image, len(dataset.classes)))
    # Last: left_behind.START_COMPLETE.
    recorder.artifact(write_text(folder / START_COMPLETE, table), START_COMPLETE)


def record_history(state: TrainState, recorder: JournalRecorder) -> None:
    """Every measurement that a checkpoint remembers; the shipper leaves out what MLflow has."""
    for step, loss in enumerate(state.train_losses, start=1):
        recorder.metrics({"train/loss": loss}, step)
    for each in state.validations:
        recorder.metrics({"val/loss": each.loss, "val/accuracy": each.accuracy}, each.step)


def record_costs(book: CostBook, step: int, recorder: JournalRecorder) -> None:
    """What the run cost: each attempt at its number as step, and all together at the run's last step."""
    for each in book.attempts():
        costs = {
            "attempt/steps": each.steps,
            "attempt/device_seconds": each.device_seconds,
            "attempt/wall_seconds": each.wall_seconds,
        }
        recorder.metrics(costs, each.attempt)
    recorder.metrics(book.totals(), step)


def frozen_file(frozen: Trunk) -> str:
    """Where the weights of a frozen trunk are among a run's artifacts, and below its folder."""
    return f"checkpoints/frozen-{frozen.digest()[:12]}.pt"


def machine(run: Run, plan: FeaturePlan | None = None) -> dict[str, Any]:
    """What has to be the same for a continued run to be the same in every bit."""
    return {
        **({"features": plan.kept} if plan else {}),
        "cpu": lineage.cpu_name(),
        "device": lineage.device_name(run.placement.device),
        "torch": lineage.version_of("torch"),
        "threads": run.threads,
        "processes": run.processes,
    }


def lasting_uri(uri: str) -> str:
    """A data set's URI as it is understood from any folder."""
    path = Path(uri).expanduser()
    return str(path.resolve()) if "://" not in uri and (path.is_file() or "/" in uri) and path.exists() else uri
