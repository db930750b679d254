"""What a training came to, as a table on stdout."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from cnn_jobs.cli.tables import console, table
from cnn_jobs.errors import CnnJobsError, InterruptedRunError, NotShippedError
from cnn_jobs.monitoring import logs
from cnn_jobs.run import JobOptions, RunResult
from cnn_jobs.tasks import Task
from cnn_jobs.tracking.connection import without_password

_log = logging.getLogger("cnn_jobs.train")
PARTS = ("train", "val", "test")


def print_results(task: Task, results: Sequence[RunResult], options: JobOptions, *, synthetic: bool) -> None:
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
    accuracy = result.metrics["best/test_accuracy"]
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


def compare_command(options: JobOptions) -> str:
    """The shell command that lists this experiment's runs side by side, fit to be pasted."""
    return _command(options, f"runs --experiment {shlex.quote(options.experiment)}")


def how_to_go_on(error: CnnJobsError, options: JobOptions) -> list[str]:
    """What to type after an end that is none: the command that goes on with the run, or that sends what is left."""
    if not error.run_key or not isinstance(error, NotShippedError | InterruptedRunError):
        return []
    if isinstance(error, NotShippedError):
        folder = shlex.quote(str(options.state_dir / error.run_key))
        return [f"Send the rest when MLflow is back:\n  {_command(options, f'replay {folder}')}"]
    arguments = sys.argv[1:] if "--run-key" in " ".join(sys.argv) else [*sys.argv[1:], "--run-key", error.run_key]
    return [f"Go on with it:\n  {_command(options, shlex.join(arguments))}"]


def _command(options: JobOptions, arguments: str) -> str:
    program = Path(sys.argv[0])
    # A virtual environment that is not activated: name the program as it was called, if that is short.
    relative = os.path.relpath(program) if program.is_absolute() else str(program)
    name = relative if program.name == "cnn-jobs" and not relative.startswith("..") else "cnn-jobs"
    uri = shlex.quote(without_password(options.tracking_uri))
    return f"MLFLOW_TRACKING_URI={uri} {name} {arguments}"
