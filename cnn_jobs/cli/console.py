"""How far a run is: a progress bar on a terminal, a line a validation elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cnn_jobs.run import Watcher

REDRAW_INTERVAL_S = 0.1


def watcher() -> Watcher:
    """The one that suits where stderr goes."""
    return BarWatcher() if sys.stderr.isatty() else LineWatcher()


class BarWatcher:
    """A rich progress bar on stderr, with loss, validation accuracy and speed."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._drawn = 0.0
        self._last: dict[str, str] = {}

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
        names = {
            "train/loss": ("loss", ".3f"),
            "val/accuracy": ("accuracy", ".3f"),
            "train/images_per_second": ("speed", ",.0f"),
        }
        for key, value in values.items():
            if key in names:
                field, form = names[key]
                self._last[field] = format(value, form)
        now = time.monotonic()
        if self._progress and (now - self._drawn > REDRAW_INTERVAL_S or "val/loss" in values):
            self._drawn = now
            fields: dict[str, Any] = self._last
            self._progress.update(self._task, completed=step, **fields)

    def phase(self, text: str) -> None:
        """Shows the text in place of the run's name."""
        if self._progress:
            self._progress.update(self._task, description=text)

    def warn(self, text: str) -> None:
        """A line above the bar."""
        (self._progress.console if self._progress else Console(stderr=True)).print(f"warning: {text}", soft_wrap=True)

    def end(self) -> None:
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

    def begin(self, name: str, steps: int) -> None:
        """A run of at most ``steps`` optimiser steps starts."""
        self._name, self._steps = name, steps
        self._say(f"training, at most {steps} steps")

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """A line for each validation."""
        self._loss = values.get("train/loss", self._loss)
        if "val/loss" in values:
            self._say(
                f"step {step}/{self._steps}: train loss {self._loss:.4f}, "
                f"val loss {values['val/loss']:.4f}, val accuracy {values['val/accuracy']:.4f}"
            )

    def phase(self, text: str) -> None:
        """A line of its own."""
        self._say(text)

    def warn(self, text: str) -> None:
        """A line of its own."""
        self._say(f"warning: {text}")

    def end(self) -> None:
        """Nothing to free."""

    def _say(self, text: str) -> None:
        name = f" {self._name}:" if self._name else ""
        click.echo(f"{time.strftime('%H:%M:%S')}{name} {text}", err=True)
