"""Faults in a child process, installed before it runs the command; signals are real ones."""

from __future__ import annotations

import builtins
import importlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def cheap_outputs() -> None:
    """Skips plots and the MLflow model, which take seconds and are not compared."""
    from cnn_jobs.runs import artifacts

    def write(task: Any, state: Any, results: Any, data: Any, classes: Any, folder: Path) -> None:
        (folder / "history.csv").write_text("step\n")

    artifacts.write_artifacts = write


def quick_heartbeats(interval_s: float = 0.2, still_s: float = 2.0) -> None:
    """Heartbeats several times a second; two seconds without one in place of a minute."""
    from cnn_jobs.tracking import ownership, recorder

    ownership.HEARTBEAT_INTERVAL_S, ownership.STILL_S, ownership.POLL_S = interval_s, still_s, 0.1
    recorder.UPLOAD_INTERVAL_S = 0.1


def send_signal(name: str) -> None:
    """The process sends itself a signal and stores the time."""
    path = Path("signalled")
    if not path.exists():
        path.write_text(str(time.monotonic()))
    os.kill(os.getpid(), getattr(signal, name))


def signal_before(target: str, name: str, times: int = 1) -> None:
    """``times`` signals before the first call of ``target`` (module:name or module:Class.name)."""

    def at_call(number: int) -> None:
        for _ in range(times if number == 1 else 0):
            send_signal(name)

    _before_call(target, at_call)


def raise_in(target: str, error: str, at_call: int = 1) -> None:
    """``target`` raises the built-in ``error`` at its ``at_call``-th call, or with 0 at every call."""

    def raise_error(number: int) -> None:
        if at_call in (0, number):
            raise getattr(builtins, error)("made by the test")

    _before_call(target, raise_error)


def _before_call(target: str, action: Callable[[int], object]) -> None:
    """``action`` gets the number of each call of ``target``, before the call."""
    cheap_outputs()
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, last = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real, calls = getattr(owner, last), itertools.count(1)

    def call(*args: Any, **settings: Any) -> Any:
        action(next(calls))
        return real(*args, **settings)

    setattr(owner, last, call)


def thread_dies_at_step(step: int) -> None:
    """A library's thread dies of an error."""
    at_step(step, lambda: threading.Thread(target=lambda: 1 // 0, name="library").start())
    cheap_outputs()


def clock_jumps_back_at_step(step: int, seconds: float) -> None:
    """The wall clock is set back."""
    real_ns, real, offset = time.time_ns, time.time, [0.0]
    time.time_ns = lambda: real_ns() - int(offset[0] * 1e9)
    time.time = lambda: real() - offset[0]

    def jump() -> None:
        offset[0] = seconds

    at_step(step, jump)
    cheap_outputs()


def slow_steps(seconds: float) -> None:
    """``quick_heartbeats``, and steps of at least ``seconds``."""
    quick_heartbeats()
    cheap_outputs()
    at_step(0, lambda: time.sleep(seconds), every=True)


def at_step(step: int, action: Callable[[], object], *, every: bool = False) -> None:
    """``action`` when the loss of that step, or of every step, is reported."""
    from cnn_jobs.cli.console import LineProgress

    real = LineProgress.step_finished

    def step_finished(self: LineProgress, at: int, loss: float) -> None:
        if every or at == step:
            action()
        real(self, at, loss)

    LineProgress.step_finished = step_finished  # type: ignore[assignment,method-assign]


def signal_at_step(step: int, name: str) -> None:
    """The signal when the loss of optimiser step ``step`` is reported."""
    cheap_outputs()
    at_step(step, lambda: send_signal(name))


def forget_generators(step: int, name: str) -> None:
    """``signal_at_step``, in a program that ignores the random generators in checkpoints."""
    signal_at_step(step, name)
    _without_generators()


def _without_generators() -> None:
    import torch

    from cnn_jobs.training.state import TrainState

    real = TrainState.load_state_dict

    def load(self: TrainState, saved: dict[str, Any]) -> None:
        before = torch.get_rng_state()
        real(self, saved)
        torch.set_rng_state(before)

    TrainState.load_state_dict = load  # type: ignore[method-assign]


def resume_without_generators() -> None:
    """The process that resumes in that control experiment."""
    cheap_outputs()
    _without_generators()


def refused_metric() -> None:
    """The run records a metric with a name that MLflow rejects."""
    from cnn_jobs.runs import artifacts

    cheap_outputs()
    real = artifacts.final_metrics
    artifacts.final_metrics = lambda *args: {**real(*args), "bad#name": 1.0}


def journal_thread_dies() -> None:
    """The thread that syncs the journal dies of a bug, in a training slow enough to notice."""
    from cnn_jobs.tracking import recorder

    recorder.SYNC_INTERVAL_S = 0.05
    slow_steps(0.1)
    from cnn_jobs.runs.cost import RunCost

    write = RunCost.write

    def fail(self: RunCost) -> None:
        if threading.current_thread().name == "journal-sync":
            raise ZeroDivisionError("made by the test")
        write(self)

    RunCost.write = fail  # type: ignore[method-assign]


def small_chunks() -> None:
    """The frozen backbone computes its features in six chunks."""
    from cnn_jobs.training import feature_cache, feature_store

    cheap_outputs()
    feature_cache.CHUNK["cpu"] = 10
    feature_store.INDEX_INTERVAL_S = 0.0


def signal_in_pass(chunk: int, name: str) -> None:
    """The signal before chunk number ``chunk`` of the features is written."""
    small_chunks()
    from cnn_jobs.training.feature_store import DiskFeatures

    real = DiskFeatures.write

    def write(self: DiskFeatures, number: int, features: Any) -> None:
        if number == chunk:
            send_signal(name)
        real(self, number, features)

    DiskFeatures.write = write  # type: ignore[method-assign]


def signal_at_step_in_chunks(step: int, name: str) -> None:
    """``signal_at_step``, with ``small_chunks``."""
    small_chunks()
    signal_at_step(step, name)


def noisy_libraries(crash: str = "") -> None:
    """Step 3 prints everything that a library may print, with secrets; step 4 raises an error, where ``crash``."""
    import logging
    import sys
    import warnings

    cheap_outputs()

    def print_all() -> None:
        secret = os.environ["AWS_SECRET_ACCESS_KEY"]
        print("printed by a library")  # noqa: T201
        print(f"using {secret}")  # noqa: T201
        sys.stderr.write("begun and ")
        sys.stderr.write("ended\nError: in words\n")
        sys.stderr.write("\r 10% done\r 100% done\n")
        print('{"already": "JSON"}')  # noqa: T201
        warnings.warn(f"two\nlines of http://ann:hunter2@host with {secret}", UserWarning, stacklevel=1)
        for name in ("torch.fx", "mlflow.tracking", "urllib3.connectionpool", "somebody"):
            logging.getLogger(name).warning("%s warns of key AKIAIOSFODNN7EXAMPLE", name)
        logging.getLogger("somebody").info("not shown")
        try:
            raise ValueError(f"caught, with {secret}")
        except ValueError:
            logging.getLogger("urllib3.util.retry").exception("retried")

    def fail() -> None:
        raise ZeroDivisionError(f"made by a test, with {os.environ['AWS_SECRET_ACCESS_KEY']}")

    at_step(3, print_all)
    if crash:
        at_step(4, fail)


def signal_before_step(step: int, name: str) -> None:
    """In one of several processes: the signal before optimiser step ``step``, counted from 0."""
    before_step(step, lambda: send_signal(name))


def gloo_on_cuda() -> None:
    """Processes communicate by gloo and can share a CUDA device: NCCL needs a device for each."""
    from cnn_jobs.runs import setup
    from cnn_jobs.training import process_group

    cheap_outputs()
    setup.backend_of = process_group.backend_of = lambda device: "gloo"  # type: ignore[attr-defined]


def gloo_on_cuda_signal_before_step(step: int, name: str) -> None:
    """``signal_before_step``, with ``gloo_on_cuda``."""
    gloo_on_cuda()
    signal_before_step(step, name)


def error_before_step(step: int) -> None:
    """In one of several processes: a bug before that step."""

    def fail() -> None:
        raise ZeroDivisionError("made by the test")

    before_step(step, fail)


def slow_save(seconds: float) -> None:
    """Each checkpoint takes longer than the (shortened) time after which a silent process counts as lost."""
    from cnn_jobs.distributed import rendezvous
    from cnn_jobs.runs.checkpointing import RunCheckpointer

    cheap_outputs()
    rendezvous.SILENT_S = 3.0
    real = RunCheckpointer.save

    def save(self: Any, state: Any) -> Path:
        time.sleep(seconds)
        return real(self, state)

    RunCheckpointer.save = save  # type: ignore[method-assign]


def before_step(step: int, action: Callable[[], object]) -> None:
    """In one of several processes: ``action`` before that step."""
    from cnn_jobs.training.process_group import DistributedGroup

    cheap_outputs()
    real = DistributedGroup.begin_step

    def begin_step(self: Any, seed: int, step_: int) -> None:
        if step_ == step:
            action()
        real(self, seed, step_)

    DistributedGroup.begin_step = begin_step  # type: ignore[assignment,method-assign]


def wait_for_upload(step: int) -> None:
    """Waits before that step until MLflow has a checkpoint."""
    _keep_recorders()
    before_step(step, _wait_until_uploaded)


def signal_after_upload(step: int, name: str) -> None:
    """``wait_for_upload``, and the signal once the other processes know of the checkpoint."""
    _keep_recorders()

    def act() -> None:
        _wait_until_uploaded()
        time.sleep(1.5)
        send_signal(name)

    before_step(step, act)


_recorders: list[Any] = []


def _keep_recorders() -> None:
    from cnn_jobs.tracking.recorder import JournalRecorder

    real = JournalRecorder.start

    def start(self: Any, *args: Any, **settings: Any) -> None:
        _recorders.append(self)
        real(self, *args, **settings)

    JournalRecorder.start = start  # type: ignore[method-assign]


def _wait_until_uploaded() -> None:
    end = time.monotonic() + 60
    while not _recorders[0].checkpoints_sent and time.monotonic() < end:
        time.sleep(0.05)
