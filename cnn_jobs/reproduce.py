"""A recorded run, trained again from what it recorded, and compared bit by bit."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import torch

from cnn_jobs import outputs
from cnn_jobs.data.batches import place_on_device
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.sources import open_dataset
from cnn_jobs.errors import CnnJobsError, ReproductionError, UserError
from cnn_jobs.recipe import Recipe
from cnn_jobs.run import Watcher
from cnn_jobs.stop import StopRequest
from cnn_jobs.tasks import Task, get_task
from cnn_jobs.tracking import lineage
from cnn_jobs.tracking.records import CLOCK_METRICS
from cnn_jobs.tracking.remote import RefusalError, Remote, RemoteRun
from cnn_jobs.training.checkpoint import load_checkpoint
from cnn_jobs.training.device import configure_arithmetic, select_device
from cnn_jobs.training.loop import Ledger, train
from cnn_jobs.training.recorder import Recorders
from cnn_jobs.training.state import TrainState, new_state

Rows = dict[tuple[str, int], list[float]]


@dataclass(frozen=True)
class Comparison:
    """How many values of one kind were compared, and where they differ, in words."""

    what: str
    compared: int
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Recorded:
    """What a run left that can be trained again."""

    run: RemoteRun
    task: Task
    recipe: Recipe
    dataset: Dataset
    facts: Mapping[str, Any]
    last: Mapping[str, Any]
    best: Mapping[str, Any]
    rows: Rows


@dataclass
class _RowRecorder:
    rows: Rows = field(default_factory=dict)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            if not key.startswith(CLOCK_METRICS):
                self.rows.setdefault((key, step), []).append(float(value))


def reproduce(uri: str, run_id: str, data: str, watcher: Watcher, stop: StopRequest) -> list[Comparison]:
    """Trains a FINISHED run again, on this machine and without recording it, and compares rows, weights and optimiser.

    ``data`` names the data set where it is no longer where the run had it ("": the recorded place). Raises
    ``ReproductionError`` (exit 2) where identity is impossible from the start, and says why.
    """
    recorded = _read(Remote(uri), run_id, data)
    placement = select_device("cuda" if str(recorded.facts["device"])[:3] != "cpu" else "cpu")
    _check_machine(recorded, lineage.collect(placement.device, recorded.facts["threads"]))
    configure_arithmetic(recorded.facts["threads"])
    if torch.get_num_threads() != recorded.facts["threads"]:
        raise ReproductionError(
            f"run {run_id} used {recorded.facts['threads']} threads, torch takes only {torch.get_num_threads()} here"
        )
    task, recipe, dataset = recorded.task, recorded.recipe, recorded.dataset
    prepared = place_on_device(dataset, recipe, task.transform, placement.device, placement.memory_format)
    channels, height, width = dataset.train_images.shape[1:]
    state = new_state(task.network, recipe, (channels, height, width), len(dataset.classes), placement)
    rows = _RowRecorder()
    watcher.begin(f"{recorded.run.name} again", prepared.steps_per_epoch(recipe.batch_size) * recipe.epochs)
    try:
        with stop.deferred():
            train(state, prepared, recipe, recorder=Recorders(rows, watcher), should_stop=stop.requested)
        stop.check()
        watcher.phase("final figures of the best and the last model")
        results = outputs.final_evaluations(state, prepared, recipe, Ledger())
    finally:
        watcher.end()
    rows.metrics(outputs.final_metrics(state, results), state.step)
    return list(_compare(recorded, rows.rows, state))


def _read(remote: Remote, run_id: str, data: str) -> Recorded:
    try:
        run = remote.get(run_id)
    except RefusalError as refusal:
        raise UserError(f"run {run_id}: {refusal}; 'cnn-jobs runs' lists those there are") from refusal
    if run is None or run.status != "FINISHED" or "cnn_jobs.recipe_hash" not in run.tags:
        state = "was deleted" if run is None else f"is {run.status}" if run.status != "FINISHED" else "trained no task"
        raise UserError(f"run {run_id} {state}; only a finished run of a task can be reproduced")
    task = get_task(run.tags["cnn_jobs.task"])
    recipe = _recipe(run.params)
    if task.recipe_hash(recipe) != run.tags["cnn_jobs.recipe_hash"]:
        raise ReproductionError(
            f"run {run_id}: this version of cnn-jobs defines {task.name} or its recipe otherwise; "
            f"install the code of commit {run.tags.get('mlflow.source.git.commit') or 'that it was run from'}"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts = json.loads(remote.download(run_id, "lineage.json", folder).read_text(encoding="utf-8"))
        last, best = (
            load_checkpoint(remote.download(run_id, f"checkpoints/{each}.pt", folder)) for each in ("last", "best")
        )
    dataset = open_dataset(data or facts["data"]["uri"])
    if dataset.digest != run.tags["cnn_jobs.data_digest"]:
        raise ReproductionError(
            f"{data or facts['data']['uri']}: digest {dataset.digest[:12]}, but run {run_id} was trained on "
            f"{run.tags['cnn_jobs.data_digest'][:12]}; name the same data with --data"
        )
    rows: Rows = {}
    for key in run.metrics:
        for row in [] if key.startswith(CLOCK_METRICS) else remote.history(run_id, key):
            rows.setdefault((row.key, row.step), []).append(row.value)
    return Recorded(run, task, recipe, dataset, {**facts, "threads": last["machine"]["threads"]}, last, best, rows)


def _recipe(params: Mapping[str, str]) -> Recipe:
    hints = get_type_hints(Recipe)
    try:
        return Recipe(**{name: kind(params[name]) for name, kind in hints.items()})
    except (KeyError, ValueError) as error:
        raise ReproductionError(f"the run's params are no recipe of this version: {error}") from error


def _check_machine(recorded: Recorded, here: Mapping[str, Any]) -> None:
    tags, facts = recorded.run.tags, recorded.facts
    reasons = [
        f"{name} was {facts[name]}, here it is {here[name]}" for name in ("cpu", "device") if facts[name] != here[name]
    ]
    for package in ("torch", "numpy"):
        if facts["packages"][package] != here["packages"][package]:
            reasons.append(f"{package} was {facts['packages'][package]}, here it is {here['packages'][package]}")
    if tags.get("cnn_jobs.deterministic") != "True":
        reasons.append("it was trained with --fast, which does not repeat bit for bit")
    if words := tags.get("cnn_jobs.continued_elsewhere"):
        reasons.append(words)
    if reasons:
        raise ReproductionError(f"run {recorded.run.run_id} cannot come out the same here: {'; '.join(reasons)}")


def _compare(recorded: Recorded, rows: Rows, state: TrainState) -> Iterator[Comparison]:
    keys = sorted(recorded.rows.keys() | rows.keys())
    differing = (key for key in keys if recorded.rows.get(key) != rows.get(key))
    lines = tuple(f"{k} at step {s}: {recorded.rows.get((k, s))}, again {rows.get((k, s))}" for k, s in differing)
    yield Comparison("metric rows", len(keys), lines)
    yield _tensors("weights at the end", recorded.last["model"], state.model.state_dict())
    yield _tensors("optimiser at the end", recorded.last["optimizer"], state.optimizer.state_dict())
    yield _tensors("best weights", recorded.best["model"], state.best.weights if state.best else {})


def _tensors(what: str, before: Any, after: Any) -> Comparison:
    old, new = dict(_flat(before)), dict(_flat(after))
    differing = tuple(name for name in sorted(old.keys() | new.keys()) if not _same(old.get(name), new.get(name)))
    if not old:
        raise CnnJobsError(f"the run's {what} hold nothing to compare")
    return Comparison(what, len(old), differing)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor and plain value in a nested structure, by its path."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(each, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _flat(each, f"{path}[{index}]")
    else:
        yield path, value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        one, other = one.detach().cpu().contiguous(), other.detach().cpu().contiguous()
        same_kind = one.dtype == other.dtype and one.shape == other.shape
        return same_kind and bool(one.view(-1).view(torch.uint8).equal(other.view(-1).view(torch.uint8)))
    return repr(one) == repr(other)
