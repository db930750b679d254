"""A recorded run, trained again from what it recorded, and compared bit by bit."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch

from cnn_jobs.data.batches import ImageSet, Parts, TrainingData, place_on_device
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.sources import open_dataset
from cnn_jobs.errors import CnnJobsError, InterruptedRunError, ReproductionError, UserError
from cnn_jobs.models.weights import Weights, open_weights
from cnn_jobs.recipe import Recipe
from cnn_jobs.runs import artifacts
from cnn_jobs.runs.setup import Run, RunOptions
from cnn_jobs.system import environment
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tasks import Task, get_task
from cnn_jobs.tracking import names
from cnn_jobs.tracking.client import RefusalError, RemoteRun, TrackingClient
from cnn_jobs.training.checkpoint import load_checkpoint
from cnn_jobs.training.device import configure_arithmetic, select_device
from cnn_jobs.training.feature_cache import COMPUTED_AT_EACH_STEP, features_of_run, plan_features
from cnn_jobs.training.loop import DeviceTime, train
from cnn_jobs.training.observer import Phase, Recorders, Watcher
from cnn_jobs.training.state import TrainState, new_state


@dataclass(frozen=True)
class Comparison:
    """How many values of one kind were compared, and where they differ, in words."""

    what: str
    compared: int
    differences: tuple[str, ...]


def compare_tensors(what: str, before: Any, after: Any) -> Comparison:
    """Every tensor and plain value of two nested structures. Raises ``CnnJobsError`` where there is none."""
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


Rows = dict[tuple[str, int], list[float]]


@dataclass(frozen=True)
class Recorded:
    """What a run left that can be trained again."""

    run: RemoteRun
    task: Task
    recipe: Recipe
    dataset: Dataset
    weights: Weights | None
    facts: Mapping[str, Any]
    last: Mapping[str, Any]
    best: Mapping[str, Any]
    rows: Rows


@dataclass
class _RowRecorder:
    rows: Rows = field(default_factory=dict)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            if not key.startswith(names.CLOCK_METRICS):
                self.rows.setdefault((key, step), []).append(float(value))


def reproduce(uri: str, run_id: str, data: str, watcher: Watcher, stop: StopRequest) -> list[Comparison]:
    """Trains a FINISHED run again, on this machine and without recording it, and compares rows, weights and optimiser.

    ``data`` names the data set where it is no longer where the run had it ("": the recorded place). Raises
    ``ReproductionError`` (exit 2) where identity is impossible from the start, and says why.
    """
    recorded = _read(TrackingClient(uri), run_id, data)
    placement = select_device("cuda" if str(recorded.facts["device"])[:3] != "cpu" else "cpu")
    _check_machine(recorded, environment.collect(placement.device, recorded.facts["threads"]))
    configure_arithmetic(recorded.facts["threads"])
    if torch.get_num_threads() != recorded.facts["threads"]:
        raise ReproductionError(
            f"run {run_id} used {recorded.facts['threads']} threads, torch takes only {torch.get_num_threads()} here"
        )
    with tempfile.TemporaryDirectory(prefix="cnn-jobs-") as folder:
        kept = recorded.last["machine"].get("features") != COMPUTED_AT_EACH_STEP
        options = RunOptions(tracking_uri=uri, state_dir=Path(folder), trunk_cache="auto" if kept else "off")
        run = Run(recorded.task, recorded.recipe, options, recorded.dataset, placement, recorded.facts["threads"])
        run.weights = recorded.weights
        rows = _RowRecorder()
        state, results = _train(run, f"{recorded.run.name} again", rows, watcher, stop)
    rows.metrics(artifacts.final_metrics(state, results), state.step)
    return list(_compare(recorded, rows.rows, state))


def _train(
    run: Run, name: str, rows: _RowRecorder, watcher: Watcher, stop: StopRequest
) -> tuple[TrainState, artifacts.Evaluations]:
    task, recipe, placement = run.task, run.recipe, run.placement
    images = place_on_device(run.dataset, recipe, task.transform, placement.device, placement.memory_format)
    weights = run.weights.tensors if run.weights else None
    state = new_state(task.network, recipe, run.image, len(run.dataset.classes), placement, weights)
    watcher.begin(name, images.steps_per_epoch(recipe.batch_size) * recipe.epochs)
    try:
        with stop.deferred():
            data = _data(run, state, images, watcher, stop)
            train(state, data, recipe, recorder=Recorders(rows, watcher), should_stop=stop.requested)
        stop.check()
        watcher.phase(Phase.EVALUATION, "final figures of the best and the last model")
        return state, artifacts.final_evaluations(state, data, recipe, DeviceTime())
    finally:
        watcher.end("finished")


def _data(run: Run, state: TrainState, images: Parts[ImageSet], watcher: Watcher, stop: StopRequest) -> TrainingData:
    """The images, or the frozen trunk's features, kept or not as the run had them."""
    if state.frozen is None:
        return images
    plan = plan_features(run, state.frozen, images)
    if plan.mode == "off" and run.options.trunk_cache != "off" and run.recipe.augmentation == "none":
        raise ReproductionError(f"the run computed its features once, here there is no room for that: {plan.why}")
    data = features_of_run(run, plan, images, watcher, stop.requested)
    if data is None:
        stop.check()
        raise InterruptedRunError
    return data


def _read(remote: TrackingClient, run_id: str, data: str) -> Recorded:
    try:
        run = remote.get(run_id)
    except RefusalError as refusal:
        raise UserError(f"run {run_id}: {refusal}; 'cnn-jobs runs' lists those there are") from refusal
    if run is None or run.status != "FINISHED" or names.RECIPE_HASH not in run.tags:
        state = "was deleted" if run is None else f"is {run.status}" if run.status != "FINISHED" else "trained no task"
        raise UserError(f"run {run_id} {state}; only a finished run of a task can be reproduced")
    task = get_task(run.tags[names.TASK])
    recipe = _recipe(run.params)
    # The param says what the weights are, the tag where they were.
    recipe = replace(recipe, weights=run.tags.get(names.WEIGHTS, recipe.weights))
    weights_digest = run.tags.get(names.WEIGHTS_DIGEST, "")
    if task.recipe_hash(recipe, weights_digest) != run.tags[names.RECIPE_HASH]:
        raise ReproductionError(
            f"run {run_id}: this version of cnn-jobs defines {task.name} or its recipe otherwise; "
            f"install the code of commit {run.tags.get('mlflow.source.git.commit') or 'that it was run from'}"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts = json.loads(remote.download(run_id, names.LINEAGE, folder).read_text(encoding="utf-8"))
        last, best = (
            load_checkpoint(remote.download(run_id, f"checkpoints/{each}.pt", folder)) for each in ("last", "best")
        )
    dataset = open_dataset(data or facts["data"]["uri"])
    if dataset.digest != run.tags[names.DATA_DIGEST]:
        raise ReproductionError(
            f"{data or facts['data']['uri']}: digest {dataset.digest[:12]}, but run {run_id} was trained on "
            f"{run.tags['cnn_jobs.data_digest'][:12]}; name the same data with --data"
        )
    weights = open_weights(recipe.weights)
    if weights and weights.digest != weights_digest:
        raise ReproductionError(
            f"{recipe.weights}: digest {weights.digest[:12]}, but run {run_id} began with {weights_digest[:12]}; "
            "put the same file in its place"
        )
    rows: Rows = {}
    for key in run.metrics:
        for row in [] if key.startswith(names.CLOCK_METRICS) else remote.history(run_id, key):
            rows.setdefault((row.key, row.step), []).append(row.value)
    facts = {**facts, "threads": last["machine"]["threads"]}
    return Recorded(run, task, recipe, dataset, weights, facts, last, best, rows)


def _recipe(params: Mapping[str, str]) -> Recipe:
    hints = get_type_hints(Recipe)
    try:
        return Recipe(**{name: kind(params[name]) for name, kind in hints.items() if name in params})
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
    if tags.get(names.DETERMINISTIC) != "True":
        reasons.append("it was trained with --fast, which does not repeat bit for bit")
    if words := tags.get(names.CONTINUED_ELSEWHERE):
        reasons.append(words)
    if reasons:
        raise ReproductionError(f"run {recorded.run.run_id} cannot come out the same here: {'; '.join(reasons)}")


def _compare(recorded: Recorded, rows: Rows, state: TrainState) -> Iterator[Comparison]:
    keys = sorted(recorded.rows.keys() | rows.keys())
    differing = (key for key in keys if recorded.rows.get(key) != rows.get(key))
    lines = tuple(f"{k} at step {s}: {recorded.rows.get((k, s))}, again {rows.get((k, s))}" for k, s in differing)
    yield Comparison("metric rows", len(keys), lines)
    yield compare_tensors("weights at the end", recorded.last["model"], state.model.state_dict())
    yield compare_tensors("optimiser at the end", recorded.last["optimizer"], state.optimizer.state_dict())
    yield compare_tensors("best weights", recorded.best["model"], state.best.weights if state.best else {})
