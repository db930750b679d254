"""Training runs read back from MLflow, page by page, with their curves and files."""

from __future__ import annotations

import csv
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cnn_jobs.errors import UserError
from cnn_jobs.tracking import names
from cnn_jobs.tracking.client import TrackingClient
from cnn_jobs.tracking.connection import OutageError, is_server, run_url

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


MODELS = ("last", "best")
LARGEST = 1e300
# What a run must have measured to be counted.
NEEDED = tuple(names.final(model, part, figure) for model in MODELS for part in names.PARTS for figure in names.FIGURES)


@dataclass(frozen=True)
class Confusion:
    """Predictions on the test set; ``counts[i][j]``: images of class i that were predicted as class j."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Curve:
    """Values at rising optimiser steps."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class TrainingRun:
    """One run of a task: params, last metric values and tags by name; curves and files where they were read.

    ``train_loss`` is thinned: at each validation, the mean over the steps since the previous one. ``mistakes``: a PNG.
    ``lacking``: what could not be read, as text.
    """

    run_id: str
    name: str
    url: str
    status: str
    start_ms: int
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    train_loss: Curve = Curve()
    val_loss: Curve = Curve()
    val_accuracy: Curve = Curve()
    confusion: Confusion | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    mistakes: bytes = b""
    lacking: tuple[str, ...] = ()

    @property
    def task(self) -> str:
        """The task that it trained, "" for a run of another program."""
        return self.tags.get(names.TASK, "")

    @property
    def group_hash(self) -> str:
        """Equal for runs that differ only in the seed."""
        return self.tags.get(names.GROUP_HASH, "")

    @property
    def seed(self) -> int:
        """Its seed. Raises ``ValueError`` where the param is not a number."""
        return int(self.params["seed"])


@dataclass(frozen=True)
class Aside:
    """A run that is not counted, and the reason."""

    run_id: str
    name: str
    url: str
    state: str
    reason: str


def reason_against(run: TrainingRun, tasks: Sequence[str]) -> str:
    """Why a run cannot be counted; "" where it can."""
    state = run.tags.get(names.STATE, "")
    if run.task not in tasks:
        return f"this version has no task '{run.task}'"
    if run.status != "FINISHED" or state != "finished":
        why = run.tags.get(names.REASON, "")
        return f"it did not finish{': ' + why if why else ''}"
    lacking = [tag for tag in (names.GROUP_HASH, names.DATA_DIGEST) if not run.tags.get(tag)]
    if lacking:
        return f"it has no tag {' and no '.join(lacking)}"
    if not run.params.get("seed", "").isdigit():
        return f"its param seed is '{run.params.get('seed', '')}', not a number"
    missing = [name for name in NEEDED if name not in run.metrics]
    if missing:
        return f"it has no {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
    odd = next((name for name in NEEDED if not is_number(run.metrics[name])), None)
    return f"its {odd} is {run.metrics[odd]}" if odd else ""


def is_number(value: float) -> bool:
    """Whether it can be averaged. MLflow returns infinity as the largest float."""
    return math.isfinite(value) and abs(value) < LARGEST


def thinned(losses: Curve, at: Sequence[int]) -> Curve:
    """The mean of ``losses`` over the steps between two of ``at``, at the second; no point where there is no loss."""
    steps, values, start = [], [], 0
    for before, end in pairwise((0, *at)):
        stretch = []
        while start < len(losses.steps) and losses.steps[start] <= end:
            if losses.steps[start] > before:
                stretch.append(losses.values[start])
            start += 1
        if stretch:
            steps.append(end)
            values.append(math.fsum(stretch) / len(stretch))
    return Curve(tuple(steps), tuple(values))


PAGE = 500
TRIES, BETWEEN_TRIES_S = 3, 1.0
# A server handles several requests at once; a database in this process does not gain from that.
READERS = 4
MISTAKES_BYTES = 4 << 20
TAGS = (names.PREFIX, names.GIT_COMMIT)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Experiment:
    """An experiment's training runs, oldest first; ``others``: parents of series, and documents."""

    name: str
    runs: list[TrainingRun]
    others: int


class RunReader:
    """Reads from one MLflow server or database; a call that fails is tried ``tries`` times."""

    def __init__(self, uri: str, tries: int = TRIES) -> None:
        self.remote = TrackingClient(uri)
        self._tries = tries

    def experiment(self, name: str, since_ms: int = 0) -> Experiment:
        """Runs with params, last metrics and tags; curves and files come with ``complete``.

        Raises ``UserError`` for an unknown experiment, ``TrackingError`` where MLflow does not answer.
        """
        found = self._call(lambda client: client.get_experiment_by_name(name))
        if found is None:
            there = self._call(lambda client: [each.name for each in client.search_experiments()])
            raise UserError(f"experiment '{name}' is not in MLflow; there are: {', '.join(sorted(there))}")
        runs, others = [], 0
        for each in self._pages(found.experiment_id, since_ms):
            if names.ROLE in each.data.tags:
                others += 1
            else:
                runs.append(_training_run(each, self.remote.uri))
        return Experiment(name, runs, others)

    def _pages(self, experiment_id: str, since_ms: int) -> Iterator[Run]:
        condition = f"attributes.start_time >= {since_ms}" if since_ms else ""
        token: str | None = None
        while True:
            page = self._call(
                lambda client, token=token: client.search_runs(  # type: ignore[misc]
                    [experiment_id],
                    condition,
                    max_results=PAGE,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
            )
            yield from page
            token = page.token
            if not token:
                return

    def complete(self, runs: Iterable[TrainingRun], done: Callable[[], None]) -> list[TrainingRun]:
        """The runs with curves, confusion matrix and versions, in the same order; ``done`` is called after each."""
        served = is_server(self.remote.uri)
        completed = []
        with ThreadPoolExecutor(READERS if served else 1) as readers:
            try:
                for run in readers.map(self._complete, runs):
                    completed.append(run)
                    done()
            except BaseException:
                readers.shutdown(wait=False, cancel_futures=True)  # otherwise it would read all others first
                raise
        return completed

    def _complete(self, run: TrainingRun) -> TrainingRun:
        lacking: list[str] = []
        curves = {
            key: self._curve(run.run_id, key, lacking) for key in (names.TRAIN_LOSS, names.VAL_LOSS, names.VAL_ACCURACY)
        }
        with tempfile.TemporaryDirectory(prefix="cnn-jobs-") as name:
            folder = Path(name)
            confusion = self._file(run.run_id, names.CONFUSION, folder, read_confusion, lacking)
            versions = self._file(run.run_id, names.LINEAGE, folder, read_versions, lacking)
        return replace(
            run,
            train_loss=thinned(curves[names.TRAIN_LOSS], curves[names.VAL_LOSS].steps),
            val_loss=curves[names.VAL_LOSS],
            val_accuracy=curves[names.VAL_ACCURACY],
            confusion=confusion,
            versions=versions or {},
            lacking=tuple(lacking),
        )

    def with_mistakes(self, run: TrainingRun) -> TrainingRun:
        """The run with its picture of mistakes."""
        lacking = list(run.lacking)
        with tempfile.TemporaryDirectory(prefix="cnn-jobs-") as name:
            picture = self._file(run.run_id, names.MISTAKES, Path(name), read_png, lacking)
        return replace(run, mistakes=picture or b"", lacking=tuple(lacking))

    def _curve(self, run_id: str, key: str, lacking: list[str]) -> Curve:
        points = self._call(lambda client: client.get_metric_history(run_id, key))
        by_step = {point.step: point.value for point in sorted(points, key=lambda point: (point.step, point.timestamp))}
        kept = {step: value for step, value in by_step.items() if is_number(value)}
        if len(kept) < len(by_step):
            lacking.append(f"{len(by_step) - len(kept)} of {len(by_step)} points of {key} are no numbers")
        if not by_step:
            lacking.append(f"no {key} was recorded")
        return Curve(tuple(kept), tuple(kept.values()))

    def _file(
        self, run_id: str, path: str, folder: Path, read: Callable[[Path], Result], lacking: list[str]
    ) -> Result | None:
        for left in reversed(range(self._tries)):
            try:
                return read(Path(self.remote.call(lambda client: client.download_artifacts(run_id, path, str(folder)))))
            except (ValueError, KeyError, TypeError, csv.Error) as error:
                lacking.append(f"{path} is damaged ({error})")
                return None
            except Exception:  # for a missing file MLflow passes on the error of its store
                # Is the file missing, or the server unreachable? In the second case this raises.
                there = self._call(lambda client: [each.path for each in client.list_artifacts(run_id)])
                if path not in there:
                    lacking.append(f"it has no {path}")
                    return None
                if left:
                    time.sleep(BETWEEN_TRIES_S)
        lacking.append(f"{path} could not be read")
        return None

    def _call(self, function: Callable[[MlflowClient], Result]) -> Result:
        for left in reversed(range(self._tries)):
            try:
                return self.remote.call(function)
            except OutageError:
                if not left:
                    raise
                time.sleep(BETWEEN_TRIES_S)
        raise AssertionError("unreachable")


def _training_run(run: Run, uri: str) -> TrainingRun:
    served = is_server(uri)
    tags = {key: value for key, value in run.data.tags.items() if key.startswith(TAGS)}
    return TrainingRun(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        url=run_url(uri, run.info.experiment_id, run.info.run_id) if served else "",
        status=run.info.status,
        start_ms=run.info.start_time or 0,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags=tags,
    )


def read_confusion(path: Path) -> Confusion:
    """``confusion.csv`` of a run. Raises ``ValueError`` for anything but a square of counts."""
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = list(csv.reader(file))
    classes = tuple(head[1:])
    counts = tuple(tuple(int(cell) for cell in row[1:]) for row in rows)
    square = len(rows) == len(classes) and all(len(row) == len(classes) for row in counts)
    if not square or not classes or any(count < 0 for row in counts for count in row):
        raise ValueError("not a square of counts")
    return Confusion(classes, counts)


def read_versions(path: Path) -> Mapping[str, str]:
    """Versions of Python, platform and packages in ``lineage.json``. Raises ``ValueError`` for anything else."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("packages"), dict):
        raise ValueError("no packages in it")
    packages = {str(name): str(version) for name, version in content["packages"].items() if version}
    return {"python": str(content.get("python", "")), "platform": str(content.get("platform", "")), **packages}


def read_png(path: Path) -> bytes:
    """A PNG. Raises ``ValueError`` for anything else, or one too large for a page."""
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("not a PNG")
    if len(content) > MISTAKES_BYTES:
        raise ValueError(f"{len(content)} bytes, more than {MISTAKES_BYTES}")
    return content


def runs_of(uri: str, experiment: str, task: str = "") -> list[TrainingRun]:
    """The training runs of an experiment, oldest first, without parents of series and documents.

    Raises ``UserError`` for an unknown experiment, ``TrackingError`` where MLflow does not answer.
    """
    runs = RunReader(uri, tries=1).experiment(experiment).runs
    return [run for run in runs if run.task and run.task == (task or run.task)]
