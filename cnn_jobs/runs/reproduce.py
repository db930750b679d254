"""Trains a recorded run again, and compares the result bit by bit."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch

from cnn_jobs.data.batches import TrainingData
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.sources import open_dataset
from cnn_jobs.errors import CnnJobsError, InterruptedRunError, ReproductionError, UserError
from cnn_jobs.models.weights import Weights, open_weights
from cnn_jobs.recipe import Recipe, introduced_values
from cnn_jobs.runs import artifacts, record
from cnn_jobs.runs.setup import Run, RunOptions, Session, prepare
from cnn_jobs.system.environment import lineage
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tasks import Task, get_task
from cnn_jobs.tracking import names, run_status
from cnn_jobs.tracking.client import RemoteRun, TrackingClient
from cnn_jobs.tracking.connection import RefusalError
from cnn_jobs.tracking.recorder import MetricRecorder
from cnn_jobs.training.checkpoint import load_checkpoint
from cnn_jobs.training.device import device_name
from cnn_jobs.training.feature_cache import COMPUTED_AT_EACH_STEP
from cnn_jobs.training.loop import train
from cnn_jobs.training.observer import Observer, Phase, fan_out
from cnn_jobs.training.state import TrainState

Rows = dict[tuple[str, int], list[float]]


@dataclass(frozen=True)
class Comparison:
    """How many values of one kind were compared, and where they differ."""

    what: str
    compared: int
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Recorded:
    """What is needed to train a run again."""

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
class _RowRecorder(MetricRecorder):
    rows: Rows = field(default_factory=dict)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            if not key.startswith(names.CLOCK_METRICS):
                self.rows.setdefault((key, step), []).append(float(value))


def reproduce(uri: str, run_id: str, data: str, observer: Observer, stop: StopRequest) -> list[Comparison]:
    """Trains a FINISHED run again, on this machine and without recording it; compares rows, weights and optimiser
    state.

    ``data``: where the data set is now ("": the recorded place). Raises ``ReproductionError`` (exit 2), with the
    reason, where an identical result is impossible from the start.
    """
    recorded = _read(TrackingClient(uri), run_id, data)
    threads = recorded.facts["threads"]
    with tempfile.TemporaryDirectory(prefix="cnn-jobs-") as folder:
        kept = recorded.last["machine"].get("features") != COMPUTED_AT_EACH_STEP
        options = RunOptions(
            tracking_uri=uri,
            state_dir=Path(folder),
            device="cpu" if str(recorded.facts["device"]).startswith("cpu") else "cuda",
            threads=threads,
            trunk_cache="auto" if kept else "off",
            fast_convolutions=recorded.last["machine"].get("convolutions") != record.TORCH_CONVOLUTIONS,
        )
        run = prepare(Session(recorded.task, options, recorded.dataset, observer, stop), recorded.recipe)
        _check_machine(recorded, run)
        state = run.new_state()
        if torch.get_num_threads() != threads:
            actual = torch.get_num_threads()
            raise ReproductionError(f"run {run_id} used {threads} threads, torch takes only {actual} here")
        rows = _RowRecorder()
        results = _train(run, state, f"{recorded.run.name} again", rows)
    rows.metrics(artifacts.final_metrics(state, results), state.step)
    return list(_compare(recorded, rows.rows, state))


def _train(run: Run, state: TrainState, name: str, rows: _RowRecorder) -> artifacts.Evaluations:
    observer, stop = run.session.observer, run.session.stop
    observer.training_started(name, run.steps_per_epoch * run.recipe.epochs)
    try:
        with stop.masked():
            data: TrainingData | None = run.data
            if plan := run.plan_features(state):
                wanted = run.options.trunk_cache != "off" and run.recipe.augmentation == "none"
                if plan.mode == "off" and wanted:
                    raise ReproductionError(f"the run kept its features, for which there is no room here: {plan.why}")
                data = run.session.features.load(plan, observer, run.spent, stop.requested)
            if data is None:
                stop.check()
                raise InterruptedRunError
            train(state, data, run.recipe, observer=fan_out(rows, observer), should_stop=stop.requested)
        stop.check()
        observer.phase_changed(Phase.EVALUATION, "final figures of the best and the last model")
        return artifacts.final_evaluations(state, data, run.recipe, run.spent)
    finally:
        observer.attempt_ended(run_status.FINISHED)


def _read(client: TrackingClient, run_id: str, data: str) -> Recorded:
    try:
        run = client.get(run_id)
    except RefusalError as refusal:
        raise UserError(f"run {run_id}: {refusal}; 'cnn-jobs runs' lists the existing ones") from refusal
    if run is None or run.status != "FINISHED" or names.RECIPE_HASH not in run.tags:
        state = "was deleted" if run is None else f"is {run.status}" if run.status != "FINISHED" else "trained no task"
        raise UserError(f"run {run_id} {state}; only a finished run of a task can be reproduced")
    task = get_task(run.tags[names.TASK])
    recipe = _recipe(run.params)
    # The param has what the weights are, the tag where they were.
    recipe = replace(recipe, weights=run.tags.get(names.WEIGHTS, recipe.weights))
    weights_digest = run.tags.get(names.WEIGHTS_DIGEST, "")
    if task.recipe_hash(recipe, weights_digest) != run.tags[names.RECIPE_HASH]:
        raise ReproductionError(
            f"run {run_id}: this version of cnn-jobs defines {task.name} or its recipe differently; "
            f"install the code of commit {run.tags.get(names.GIT_COMMIT) or 'that it was run from'}"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts = json.loads(client.download(run_id, names.LINEAGE, folder).read_text(encoding="utf-8"))
        last, best = (
            load_checkpoint(client.download(run_id, artifact, folder))
            for artifact in (names.LAST_CHECKPOINT, names.BEST_CHECKPOINT)
        )
    dataset = open_dataset(data or facts["data"]["uri"])
    if dataset.digest != run.tags[names.DATA_DIGEST]:
        raise ReproductionError(
            f"{data or facts['data']['uri']}: digest {dataset.digest[:12]}, but run {run_id} was trained on "
            f"{run.tags[names.DATA_DIGEST][:12]}; name the same data with --data"
        )
    weights = open_weights(recipe.weights)
    if weights and weights.digest != weights_digest:
        raise ReproductionError(
            f"{recipe.weights}: digest {weights.digest[:12]}, but run {run_id} started from {weights_digest[:12]}; "
            "restore the same file"
        )
    rows: Rows = {}
    for key in run.metrics:
        for row in [] if key.startswith(names.CLOCK_METRICS) else client.history(run_id, key):
            rows.setdefault((row.key, row.step), []).append(row.value)
    facts = {**facts, "threads": last["machine"]["threads"]}
    return Recorded(run, task, recipe, dataset, weights, facts, last, best, rows)


def _recipe(params: Mapping[str, str]) -> Recipe:
    """The recipe in a run's params; a field that is newer than the run has the value with which it was introduced."""
    given = {name: kind(params[name]) for name, kind in get_type_hints(Recipe).items() if name in params}
    return Recipe(**{**introduced_values(), **given})


def _check_machine(recorded: Recorded, run: Run) -> None:
    tags, facts = recorded.run.tags, recorded.facts
    here = lineage(device_name(run.placement.device), run.threads)
    reasons = [
        f"{name} was {facts[name]}, here it is {here[name]}" for name in ("cpu", "device") if facts[name] != here[name]
    ]
    for package in ("torch", "numpy"):
        if facts["packages"][package] != here["packages"][package]:
            reasons.append(f"{package} was {facts['packages'][package]}, here it is {here['packages'][package]}")
    before, now = (
        each.get("convolutions") for each in (record.with_defaults(recorded.last["machine"]), record.machine(run))
    )
    if before != now:
        commit = tags.get(names.GIT_COMMIT) or "that it was trained with"
        reasons.append(f"its convolutions were {before}, here they are {now} (install the code of commit {commit})")
    if tags.get(names.DETERMINISTIC) != "True":
        reasons.append("it was trained with --fast, which does not repeat bit for bit")
    if text := tags.get(names.CONTINUED_ELSEWHERE):
        reasons.append(text)
    if reasons:
        raise ReproductionError(f"run {recorded.run.run_id} cannot be reproduced here: {'; '.join(reasons)}")


# -- comparison ------------------------------------------------------------------------------------------------------


def _compare(recorded: Recorded, rows: Rows, state: TrainState) -> Iterator[Comparison]:
    keys = sorted(recorded.rows.keys() | rows.keys())
    differing = (key for key in keys if recorded.rows.get(key) != rows.get(key))
    lines = tuple(f"{k} at step {s}: {recorded.rows.get((k, s))}, again {rows.get((k, s))}" for k, s in differing)
    yield Comparison("metric rows", len(keys), lines)
    yield compare_tensors("weights at the end", recorded.last["model"], state.model.state_dict())
    yield compare_tensors("optimiser at the end", recorded.last["optimizer"], state.optimizer.state_dict())
    yield compare_tensors("best weights", recorded.best["model"], state.best.weights if state.best else {})


def compare_tensors(what: str, before: Any, after: Any) -> Comparison:
    """Compares every tensor and plain value of two nested structures. Raises ``CnnJobsError`` where there is none."""
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
