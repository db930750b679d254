"""The interface of a contender, our loop, and the ceiling; ``usual`` and ``lightning_loop`` have the other loops."""

from __future__ import annotations

import contextlib
import io
import sqlite3
import time
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.setting import Setting
from cnn_jobs.cli.console import LineProgress
from cnn_jobs.tracking import run_status
from cnn_jobs.tracking.document_run import open_recorder
from cnn_jobs.tracking.records import RunHeader, now_ms
from cnn_jobs.tracking.run_folder import RunFolder
from cnn_jobs.training.evaluation import precision_context
from cnn_jobs.training.loop import DeviceTime, LoopResult, train
from cnn_jobs.training.observer import fan_out


class Contender(Protocol):
    """A training loop to be measured."""

    def run(self, untimed: int, timed: int) -> float:
        """Does ``untimed`` steps, then ``timed`` more; returns the seconds of the latter."""

    def close(self) -> None:
        """Stops threads and processes."""


class OurLoop:
    """``cnn_jobs.training.loop.train`` as a run calls it, with a real MLflow run on sqlite and progress lines.

    The seconds are ``DeviceTime.training_seconds``: validations do not count, because no other contender validates.
    Everything else does: gathering and normalising batches, recording losses, and the uploader's thread.
    """

    def __init__(self, setting: Setting, folder: Path, *, graph: bool = True) -> None:
        self._setting, self._graph = setting, graph
        self._state = setting.new_state()
        self._database = folder / "mlflow.db"
        name = f"speed-{setting.task.name}"
        header = RunHeader("benchmarks", name, name, now_ms(), {})
        self._folder = RunFolder(folder / name)
        self._recorder = open_recorder(self._folder, f"sqlite:///{self._database}", header)
        self._recorder.start(contact_s=60.0)
        self._progress = LineProgress()
        with contextlib.redirect_stderr(io.StringIO()):
            self._progress.training_started(name, setting.recipe.epochs)

    @property
    def model(self) -> nn.Module:
        """The network that is trained."""
        return self._state.model

    def run(self, untimed: int, timed: int) -> float:
        """Continues from the step at which the last call stopped."""
        self._setting.configure(shipped=True)
        self._train(untimed)
        spent = self._train(timed)
        self._wait_for_uploader()
        return spent.training_seconds

    def _train(self, steps: int) -> DeviceTime:
        spent, last = DeviceTime(), self._state.step + steps
        with contextlib.redirect_stderr(io.StringIO()):
            result = train(
                self._state,
                self._setting.data,
                self._setting.recipe,
                observer=fan_out(self._recorder, self._progress),
                spent=spent,
                should_stop=lambda: self._state.step >= last or self._recorder.failure is not None,
                graph=self._graph,
            )
        if self._recorder.failure:
            raise self._recorder.failure
        assert result is LoopResult.INTERRUPTED, result
        assert spent.steps == steps, (spent.steps, steps)
        return spent

    def _wait_for_uploader(self) -> None:
        """Waits until every loss is in the database: uploads must not slow the next contender."""
        while self._recorder.failure is None and self._losses_in_database() < self._state.step:
            time.sleep(0.05)

    def _losses_in_database(self) -> int:
        query = "select count(*) from metrics where key = 'train/loss' and run_uuid = ?"
        with contextlib.closing(sqlite3.connect(self._database, timeout=30)) as connection:
            count: int = connection.execute(query, (self._recorder.run_id,)).fetchone()[0]
            return count

    def close(self) -> None:
        """Finishes the MLflow run. Raises ``AssertionError`` if it is not complete."""
        delivered = self._recorder.finish(run_status.finished(), 60.0)
        self._folder.close()
        assert delivered, self._recorder.outage


class Ceiling:
    """Forward, backward and step on one constant batch in memory, and nothing else.

    As shipped, unless another model (in ``memory_format``), optimiser or precision is given.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        precision: str = "fp32",
        memory_format: torch.memory_format | None = None,
    ) -> None:
        state = setting.new_state()
        memory_format = memory_format or setting.placement.memory_format
        self._setting, self._precision = setting, precision
        self._model, self._optimizer = model or state.model, optimizer or state.optimizer
        pixels, self._labels = setting.constant_batch()
        self._pixels = pixels.contiguous(memory_format=memory_format)

    def run(self, untimed: int, timed: int) -> float:
        """Trains on the one batch."""
        self._setting.configure(shipped=True)
        self._model.train()
        self._steps(untimed)
        started = self._setting.now()
        self._steps(timed)
        return self._setting.now() - started

    def _steps(self, count: int) -> None:
        for _ in range(count):
            self._optimizer.zero_grad()
            with precision_context(self._precision, self._pixels.device):
                loss = F.cross_entropy(self._model(self._pixels), self._labels)
            loss.backward()
            self._optimizer.step()

    def close(self) -> None:
        """Nothing to stop."""
