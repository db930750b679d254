"""What a training came to, as a table on stdout."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cnn_jobs.run import JobOptions, RunResult
from cnn_jobs.tasks import Task
from cnn_jobs.tracking.connection import without_password

PARTS = ("train", "val", "test")


def print_results(task: Task, results: Sequence[RunResult], options: JobOptions, *, synthetic: bool) -> None:
    """A row a model of each finished run, the runs' pages, and the command that compares runs."""
    if not results:
        return
    console = Console()
    console.print(_table(task, results, synthetic=synthetic))
    for result in results:
        early = " (stopped early)" if result.stopped_early else ""
        console.print(
            f"{result.name}: {result.steps} steps{early} in {result.seconds:.0f} s\n  {result.url}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"Compare runs:\n  {compare_command(options)}", highlight=False, soft_wrap=True)


def _table(task: Task, results: Sequence[RunResult], *, synthetic: bool) -> Table:
    title = f"{task.name}" + (" on shapes, synthetic pictures" if synthetic else "")
    table = Table("Run", "Model", title=title, title_justify="left")
    for part in PARTS:
        table.add_column(f"{part} loss", justify="right")
        table.add_column(f"{part} acc.", justify="right")
    for result in results:
        for model in ("best", "last"):
            figures = [result.metrics[f"{model}/{part}_{kind}"] for part in PARTS for kind in ("loss", "accuracy")]
            table.add_row(result.name, model, *(f"{figure:.4f}" for figure in figures))
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
        table.add_section()
        table.add_row("course report", "last", *("-" if cell is None else f"{cell:.4f}" for cell in cells))
    return table


def compare_command(options: JobOptions) -> str:
    """The shell command that lists this experiment's runs side by side, fit to be pasted."""
    program = Path(sys.argv[0])
    # A virtual environment that is not activated: name the program as it was called, if that is short.
    relative = os.path.relpath(program) if program.is_absolute() else str(program)
    name = relative if program.name == "cnn-jobs" and not relative.startswith("..") else "cnn-jobs"
    uri = shlex.quote(without_password(options.tracking_uri))
    return f"MLFLOW_TRACKING_URI={uri} {name} runs --experiment {shlex.quote(options.experiment)}"
