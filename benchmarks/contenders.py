"""What a contender is; our own loop, and the ceiling above it. The others are in ``usual`` and ``lightning_loop``."""

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
from cnn_jobs.cli.console import LineWatcher
from cnn_jobs.tracking import run_status
from cnn_jobs.tracking.document_run import PlainRun
from cnn_jobs.tracking.records import RunHeader, now_ms
from cnn_jobs.training.evaluation import precision_context
from cnn_jobs.training.loop import DeviceTime, Ending, train
from cnn_jobs.training.observer import Recorders


class Contender(Protocol):
    """Something that trains."""

    def run(self, untimed: int, timed: int) -> float:
        """Does ``untimed`` steps, then ``timed`` more; returns the seconds of the latter."""

    def close(self) -> None:
        """Gives back threads and processes."""


class OurLoop:
    """``cnn_jobs.training.loop.train`` as the job calls it, with a real MLflow run on sqlite and its line watcher.

    The seconds are the ledger's ``training_seconds``: validations that fall into a stretch do not count, as no other
    contender validates. All else does: gathering and normalising batches, recording losses, and the shipper's thread.
    """

    def __init__(self, setting: Setting, folder: Path, *, graph: bool = True) -> None:
        self._setting, self._graph = setting, graph
        self._state = setting.new_state()
        self._database = folder / "mlflow.db"
        name = f"speed-{setting.task.name}"
        header = RunHeader("benchmarks", name, name, now_ms(), {})
        self._run = PlainRun(folder / name, f"sqlite:///{self._database}", header)
        self._recorder = self._run.recorder
        self._recorder.start(contact_s=60.0)
        self._watcher = LineWatcher()
        with contextlib.redirect_stderr(io.StringIO()):
            self._watcher.begin(name, setting.recipe.epochs)

    @property
    def model(self) -> nn.Module:
        """The network in training."""
        return self._state.model

    def run(self, untimed: int, timed: int) -> float:
        """Goes on from the step where the last call ended."""
        self._setting.configure(shipped=True)
        self._train(untimed)
        ledger = self._train(timed)
        self._wait_for_shipper()
        return ledger.training_seconds

    def _train(self, steps: int) -> DeviceTime:
        ledger, last = DeviceTime(), self._state.step + steps
        with contextlib.redirect_stderr(io.StringIO()):
            ending = train(
                self._state,
                self._setting.data,
                self._setting.recipe,
                recorder=Recorders(self._recorder, self._watcher),
                ledger=ledger,
                should_stop=lambda: self._state.step >= last or self._recorder.failure is not None,
                graph=self._graph,
            )
        if self._recorder.failure:
            raise self._recorder.failure
        assert ending is Ending.INTERRUPTED, ending
        assert ledger.steps == steps, (ledger.steps, steps)
        return ledger

    def _wait_for_shipper(self) -> None:
        """Until every loss is in the database: what this stretch left to send must not slow the next contender."""
        while self._recorder.failure is None and self._losses_in_database() < self._state.step:
            time.sleep(0.05)

    def _losses_in_database(self) -> int:
        query = "select count(*) from metrics where key = 'train/loss' and run_uuid = ?"
        with contextlib.closing(sqlite3.connect(self._database, timeout=30)) as connection:
            count: int = connection.execute(query, (self._recorder.run_id,)).fetchone()[0]
            return count

    def close(self) -> None:
        """Ends the MLflow run; everything must have arrived there."""
        delivered = self._recorder.finish(run_status.finished(), 60.0)
        self._run.close()
        assert delivered, self._recorder.outage


class Ceiling:
    """Forward, backward and step on one constant batch in memory, and nothing else.

    As shipped unless another model (in the batch's memory format), optimiser or precision is given.
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
        """Steps on the one batch."""
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
        """Nothing to give back."""
