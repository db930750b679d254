"""How far a run is: a progress bar on a terminal, elsewhere a line a validation, of text or of JSON."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from cnn_jobs.errors import CnnJobsError, InterruptedRunError, NotShippedError
from cnn_jobs.monitoring import logs
from cnn_jobs.tasks import Task
from cnn_jobs.tracking import names
from cnn_jobs.tracking.connection import without_password
from cnn_jobs.training.observer import LiveAttempt, Phase, Watcher

if TYPE_CHECKING:  # torch
    from cnn_jobs.runs.setup import RunOptions, RunResult


WIDTH_OF_A_LOG = 120  # rich would take 80 characters for anything that is not a terminal


def console() -> Console:
    """Standard output, without highlighting: numbers are not decoration."""
    width = None if sys.stdout.isatty() else WIDTH_OF_A_LOG
    return Console(width=width, highlight=False, soft_wrap=False)


def table(*left: str, right: tuple[str, ...] = (), title: str = "", unbroken: int = 0) -> Table:
    """An empty table: text columns ``left``, then number columns ``right``, aligned and never broken.

    The first ``unbroken`` text columns are not broken either, however narrow the terminal.
    """
    made = Table(*left, title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in made.columns[:unbroken]:
        column.no_wrap = True
    for name in right:
        made.add_column(name, justify="right", no_wrap=True)
    return made


_log = logging.getLogger("cnn_jobs.train")
PARTS = ("train", "val", "test")


def print_results(task: Task, results: Sequence[RunResult], options: RunOptions, *, synthetic: bool) -> None:
    """A row a model of each finished run, the runs' pages, and the command that compares runs."""
    if not results:
        return
    if logs.is_json():
        for result in results:
            _log_result(task, result, synthetic=synthetic)
        return
    out = console()
    out.print(_table(task, results, synthetic=synthetic))
    for result in results:
        early = " (stopped early)" if result.stopped_early else ""
        note = f" ({result.note})" if result.note else ""
        out.print(
            f"{result.name}: {result.steps} steps{early} in {result.seconds:.0f} s{note}\n  {result.url}",
            soft_wrap=True,
        )
    out.print(f"Compare runs:\n  {compare_command(options)}", soft_wrap=True)


def _log_result(task: Task, result: RunResult, *, synthetic: bool) -> None:
    """A record with all final figures."""
    fields = {
        "run": result.name,
        "run_id": result.run_id,
        "url": result.url,
        "steps": result.steps,
        "stopped_early": result.stopped_early,
        "seconds": round(result.seconds, 3),
        "synthetic": synthetic,
        "metrics": dict(result.metrics),
        "note": result.note,
    }
    accuracy = result.metrics[names.BEST_TEST_ACCURACY]
    text = "%s of %s finished after %d steps: test accuracy %.4f (best model)"
    _log.info(text, result.name, task.name, result.steps, accuracy, extra={"fields": fields})


def _table(task: Task, results: Sequence[RunResult], *, synthetic: bool) -> Table:
    title = f"{task.name}" + (" on shapes, synthetic pictures" if synthetic else "")
    figures = tuple(f"{part}\n{kind}" for part in PARTS for kind in ("loss", "acc."))
    listing = table("Run", "Model", right=figures, title=title, unbroken=2)
    for result in results:
        for model in ("best", "last"):
            values = [result.metrics[f"{model}/{part}_{kind}"] for part in PARTS for kind in ("loss", "accuracy")]
            listing.add_row(result.name, model, *(f"{figure:.4f}" for figure in values))
    reference = task.reference
    if not synthetic and (reference.test_accuracy or reference.val_accuracy):
        cells = [
            reference.train_loss,
            reference.train_accuracy,
            None,
            reference.val_accuracy,
            None,
            reference.test_accuracy,
        ]
        listing.add_section()
        listing.add_row("course report", "last", *("-" if cell is None else f"{cell:.4f}" for cell in cells))
    return listing


def compare_command(options: RunOptions) -> str:
    """The shell command that lists this experiment's runs side by side, fit to be pasted."""
    return _command(options, f"runs --experiment {shlex.quote(options.experiment)}")


def how_to_go_on(error: CnnJobsError, options: RunOptions) -> list[str]:
    """What to type after an end that is none: the command that goes on with the run, or that sends what is left."""
    if not error.run_key or not isinstance(error, NotShippedError | InterruptedRunError):
        return []
    if isinstance(error, NotShippedError):
        folder = shlex.quote(str(options.state_dir / error.run_key))
        return [f"Send the rest when MLflow is back:\n  {_command(options, f'replay {folder}')}"]
    arguments = sys.argv[1:] if "--run-key" in " ".join(sys.argv) else [*sys.argv[1:], "--run-key", error.run_key]
    return [f"Go on with it:\n  {_command(options, shlex.join(arguments))}"]


def _command(options: RunOptions, arguments: str) -> str:
    program = Path(sys.argv[0])
    # A virtual environment that is not activated: name the program as it was called, if that is short.
    relative = os.path.relpath(program) if program.is_absolute() else str(program)
    name = relative if program.name == "cnn-jobs" and not relative.startswith("..") else "cnn-jobs"
    uri = shlex.quote(without_password(options.tracking_uri))
    return f"MLFLOW_TRACKING_URI={uri} {name} {arguments}"


REDRAW_INTERVAL_S = 0.1


def watcher() -> Watcher:
    """The one that suits where the output goes."""
    if logs.is_json():
        return LogWatcher()
    return BarWatcher() if sys.stderr.isatty() else LineWatcher()


class BarWatcher:
    """A rich progress bar on stderr, with loss, validation accuracy and speed."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._drawn = 0.0
        self._last: dict[str, str] = {}

    def opened(self, live: LiveAttempt) -> None:
        """Nothing to show yet."""

    def begin(self, name: str, steps: int) -> None:
        """A run of at most ``steps`` optimiser steps starts."""
        self._last = {"loss": "-", "accuracy": "-", "speed": "-"}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  val acc. {task.fields[accuracy]}  {task.fields[speed]} images/s"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
        )
        fields: dict[str, Any] = self._last
        self._task = self._progress.add_task(name, total=steps, **fields)
        self._progress.start()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Moves the bar; redrawn at most ten times a second, so that it costs the training nothing."""
        shown = {
            names.TRAIN_LOSS: ("loss", ".3f"),
            names.VAL_ACCURACY: ("accuracy", ".3f"),
            names.TRAIN_SPEED: ("speed", ",.0f"),
        }
        for key, value in values.items():
            if key in shown:
                field, form = shown[key]
                self._last[field] = format(value, form)
        now = time.monotonic()
        if self._progress and (now - self._drawn > REDRAW_INTERVAL_S or names.VAL_LOSS in values):
            self._drawn = now
            fields: dict[str, Any] = self._last
            self._progress.update(self._task, completed=step, **fields)

    def phase(self, phase: Phase, text: str) -> None:
        """Shows the text in place of the run's name."""
        if self._progress:
            self._progress.update(self._task, description=text)

    def warn(self, text: str) -> None:
        """A line above the bar."""
        (self._progress.console if self._progress else Console(stderr=True)).print(f"warning: {text}", soft_wrap=True)

    def end(self, state: str) -> None:
        """Takes the bar's last state and frees the terminal."""
        if self._progress:
            self._progress.stop()
            self._progress = None


class LineWatcher:
    """A line on stderr for each validation and phase: what a log file wants."""

    def __init__(self) -> None:
        self._name = ""
        self._steps = 0
        self._loss = float("nan")

    def opened(self, live: LiveAttempt) -> None:
        """Nothing to show yet."""

    def begin(self, name: str, steps: int) -> None:
        """A run of at most ``steps`` optimiser steps starts."""
        self._name, self._steps = name, steps
        self._say(f"training, at most {steps} steps", run=name, steps=steps)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """A line for each validation."""
        self._loss = values.get(names.TRAIN_LOSS, self._loss)
        if names.VAL_LOSS in values:
            self._say(
                f"step {step}/{self._steps}: train loss {self._loss:.4f}, "
                f"val loss {values['val/loss']:.4f}, val accuracy {values['val/accuracy']:.4f}",
                train_loss=self._loss,
                val_loss=values[names.VAL_LOSS],
                val_accuracy=values[names.VAL_ACCURACY],
            )

    def phase(self, phase: Phase, text: str) -> None:
        """A line of its own."""
        self._say(text, phase=phase.value)

    def warn(self, text: str) -> None:
        """A line of its own."""
        self._say(f"warning: {text}")

    def end(self, state: str) -> None:
        """Nothing to free."""

    def _say(self, text: str, **fields: object) -> None:
        name = f" {self._name}:" if self._name else ""
        click.echo(f"{time.strftime('%H:%M:%S')}{name} {text}", err=True)


class LogWatcher(LineWatcher):
    """The same lines as records, with their figures as fields."""

    def warn(self, text: str) -> None:
        """A record of its own level."""
        _log.warning("%s", text)

    def end(self, state: str) -> None:
        """A record: somebody who follows the log sees that nothing more comes."""
        _log.info("%s", state, extra={"fields": {"state": state}})

    def _say(self, text: str, **fields: object) -> None:
        _log.info("%s", text, extra={"fields": fields})
