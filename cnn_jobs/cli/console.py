"""How far a run is: a progress bar on a terminal, elsewhere a line a validation, of text or of JSON."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cnn_jobs.monitoring import logs
from cnn_jobs.watcher import LiveAttempt, Phase, Watcher

REDRAW_INTERVAL_S = 0.1


_log = logging.getLogger("cnn_jobs.train")


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
        self._loss = values.get("train/loss", self._loss)
        if "val/loss" in values:
            self._say(
                f"step {step}/{self._steps}: train loss {self._loss:.4f}, "
                f"val loss {values['val/loss']:.4f}, val accuracy {values['val/accuracy']:.4f}",
                train_loss=self._loss,
                val_loss=values["val/loss"],
                val_accuracy=values["val/accuracy"],
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
