"""The output of a training: progress, tables of results, and the next command to call."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cnn_jobs.errors import CnnJobsError, InterruptedRunError, NotShippedError
from cnn_jobs.monitoring import logs
from cnn_jobs.system.redaction import printable, without_password
from cnn_jobs.tasks import Task
from cnn_jobs.tracking import names
from cnn_jobs.training.observer import Observer, Phase

if TYPE_CHECKING:  # torch
    from cnn_jobs.runs.setup import RunOptions, RunResult

LOG_WIDTH = 120  # rich would take 80 columns for anything but a terminal
REDRAW_INTERVAL_S = 0.1
_log = logging.getLogger("cnn_jobs.train")


# -- tables ----------------------------------------------------------------------------------------------------------


class PlainConsole(Console):
    """A console that shows texts as they are: names of runs come from others, and may hold rich's markup or control
    characters."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """For cells of tables, too."""
        return super().render_str(printable(text), **settings)


def console() -> PlainConsole:
    """Standard output, as wide as the terminal or a log."""
    return PlainConsole(width=None if sys.stdout.isatty() else LOG_WIDTH)


def table(*left: str, right: tuple[str, ...] = (), title: str = "", unbroken: int = 0) -> Table:
    """An empty table: text columns ``left``, then number columns ``right``, right-aligned and never broken.

    The first ``unbroken`` text columns are never broken either, however narrow the terminal.
    """
    made = Table(*left, title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in made.columns[:unbroken]:
        column.no_wrap = True
    for name in right:
        made.add_column(name, justify="right", no_wrap=True)
    return made


# -- results ---------------------------------------------------------------------------------------------------------


def print_results(task: Task, results: Sequence[RunResult], options: RunOptions, *, synthetic: bool) -> None:
    """The final figures of each finished run, the runs' pages, and the command that compares runs."""
    if not results:
        return
    if logs.is_json():
        for result in results:
            _log_result(task, result, synthetic=synthetic)
        return
    out = console()
    out.print(_results_table(task, results, synthetic=synthetic))
    for result in results:
        early = " (stopped early)" if result.stopped_early else ""
        note = f" ({result.note})" if result.note else ""
        out.print(
            f"{result.name}: {result.steps} steps{early} in {result.seconds:.0f} s{note}\n  {result.url}",
            soft_wrap=True,
        )
    compare = _command(options, f"runs --experiment {shlex.quote(options.experiment)}")
    out.print(f"Compare runs:\n  {compare}", soft_wrap=True)


def _log_result(task: Task, result: RunResult, *, synthetic: bool) -> None:
    """A log record with all final figures."""
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


def _results_table(task: Task, results: Sequence[RunResult], *, synthetic: bool) -> Table:
    title = f"{task.name}" + (" on shapes, synthetic pictures" if synthetic else "")
    columns = tuple(f"{part}\n{kind}" for part in names.PARTS for kind in ("loss", "acc."))
    listing = table("Run", "Model", right=columns, title=title, unbroken=2)
    for result in results:
        for model in names.MODELS:
            keys = [names.final(model, part, figure) for part in names.PARTS for figure in names.FIGURES]
            listing.add_row(result.name, model, *(f"{result.metrics[key]:.4f}" for key in keys))
    figures = task.reference
    if not synthetic and (figures.test_accuracy or figures.val_accuracy):
        train, val, test = figures.train_accuracy, figures.val_accuracy, figures.test_accuracy
        cells = [figures.train_loss, train, None, val, None, test]
        listing.add_section()
        listing.add_row("course report", "last", *("-" if cell is None else f"{cell:.4f}" for cell in cells))
    return listing


def how_to_continue(error: CnnJobsError, options: RunOptions) -> list[str]:
    """The command that resumes an interrupted run, or sends the records that MLflow lacks; none for other errors."""
    if not error.run_key or not isinstance(error, NotShippedError | InterruptedRunError):
        return []
    if isinstance(error, NotShippedError):
        folder = shlex.quote(str(options.state_dir / error.run_key))
        return [f"Send the rest when MLflow is back:\n  {_command(options, f'replay {folder}')}"]
    arguments = sys.argv[1:] if "--run-key" in " ".join(sys.argv) else [*sys.argv[1:], "--run-key", error.run_key]
    return [f"Continue it with:\n  {_command(options, shlex.join(arguments))}"]


def _command(options: RunOptions, arguments: str) -> str:
    """A shell command, ready to be pasted."""
    program = Path(sys.argv[0])
    # In a virtual environment that is not activated: the program as it was called, if that is short.
    relative = os.path.relpath(program) if program.is_absolute() else str(program)
    name = relative if program.name == "cnn-jobs" and not relative.startswith("..") else "cnn-jobs"
    uri = shlex.quote(without_password(options.tracking_uri))
    return f"MLFLOW_TRACKING_URI={uri} {name} {arguments}"


# -- progress --------------------------------------------------------------------------------------------------------


def progress_observer() -> Observer:
    """A bar on a terminal, elsewhere lines of text or of JSON."""
    if logs.is_json():
        return LogProgress()
    return BarProgress() if sys.stderr.isatty() else LineProgress()


class BarProgress(Observer):
    """A progress bar on stderr, with loss, validation accuracy and speed."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._drawn_at = 0.0
        self._fields: dict[str, Any] = {}

    def training_started(self, name: str, steps: int) -> None:
        """Draws the bar."""
        self._fields = {"loss": "-", "accuracy": "-", "speed": "-"}
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  val acc. {task.fields[accuracy]}  {task.fields[speed]} images/s"),
            TimeRemainingColumn(compact=True),
            console=PlainConsole(stderr=True),
        )
        self._task = self._progress.add_task(printable(name), total=steps, **self._fields)
        self._progress.start()

    def step_finished(self, step: int, loss: float) -> None:
        """Moves the bar; redrawn at most ten times a second, so that it costs the training nothing."""
        self._fields["loss"] = f"{loss:.3f}"
        if time.monotonic() - self._drawn_at > REDRAW_INTERVAL_S:
            self._redraw(step)

    def speed_measured(self, step: int, images_per_second: float) -> None:
        """Shown with the validation that follows."""
        self._fields["speed"] = f"{images_per_second:,.0f}"

    def validated(self, step: int, loss: float, accuracy: float) -> None:
        """Shows the accuracy."""
        self._fields["accuracy"] = f"{accuracy:.3f}"
        self._redraw(step)

    def _redraw(self, step: int) -> None:
        self._drawn_at = time.monotonic()
        if self._progress:
            self._progress.update(self._task, completed=step, **self._fields)

    def phase_changed(self, phase: Phase, text: str) -> None:
        """Shows the text in place of the run's name."""
        if self._progress:
            self._progress.update(self._task, description=printable(text))

    def warn(self, text: str) -> None:
        """Prints a line above the bar."""
        (self._progress.console if self._progress else PlainConsole(stderr=True)).print(
            f"warning: {text}", soft_wrap=True
        )

    def attempt_ended(self, state: str) -> None:
        """Draws the bar's last state and releases the terminal."""
        if self._progress:
            self._progress.stop()
            self._progress = None


class LineProgress(Observer):
    """A line on stderr for each validation and phase, for log files."""

    def __init__(self) -> None:
        self._name = ""
        self._steps = 0
        self._loss = float("nan")

    def training_started(self, name: str, steps: int) -> None:
        """Prints how far the training can go."""
        self._name, self._steps = name, steps
        self._print(f"training, at most {steps} steps", run=name, steps=steps)

    def step_finished(self, step: int, loss: float) -> None:
        """Keeps the loss for the next line."""
        self._loss = loss

    def validated(self, step: int, loss: float, accuracy: float) -> None:
        """Prints the figures."""
        self._print(
            f"step {step}/{self._steps}: train loss {self._loss:.4f}, val loss {loss:.4f}, val accuracy {accuracy:.4f}",
            train_loss=self._loss,
            val_loss=loss,
            val_accuracy=accuracy,
        )

    def phase_changed(self, phase: Phase, text: str) -> None:
        """Prints the text."""
        self._print(text, phase=phase.value)

    def warn(self, text: str) -> None:
        """Prints a warning."""
        self._print(f"warning: {text}")

    def _print(self, text: str, **fields: object) -> None:
        name = f" {self._name}:" if self._name else ""
        click.echo(f"{time.strftime('%H:%M:%S')}{name} {text}", err=True)


class LogProgress(LineProgress):
    """The same lines as log records, with their figures as fields."""

    def warn(self, text: str) -> None:
        """A record of level warning."""
        _log.warning("%s", text)

    def attempt_ended(self, state: str) -> None:
        """A last record, so that a reader of the log sees the end."""
        _log.info("%s", state, extra={"fields": {"state": state}})

    def _print(self, text: str, **fields: object) -> None:
        _log.info("%s", text, extra={"fields": fields})
