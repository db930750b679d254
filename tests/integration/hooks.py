"""What is done to a child before it runs the command: faults at chosen places, by real signals."""

from __future__ import annotations

import builtins
import importlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def cheap_outputs() -> None:
    """Leaves out plots and the MLflow model: seconds of every child that identity does not depend on."""
    from cnn_jobs.runs import artifacts

    def write(task: Any, state: Any, results: Any, data: Any, classes: Any, folder: Path) -> None:
        (folder / "history.csv").write_text("step\n")

    artifacts.write = write


def quick_heartbeats(interval_s: float = 0.2, still_s: float = 2.0) -> None:
    """Seconds in place of a minute, where a test waits for a heartbeat to stand still."""
    from cnn_jobs.tracking import ownership, recorder

    ownership.HEARTBEAT_INTERVAL_S, ownership.STILL_S, ownership.POLL_S = interval_s, still_s, 0.1
    recorder.SHIP_INTERVAL_S = 0.1


def send_signal(name: str) -> None:
    """The process sends itself a signal, and notes when."""
    mark = Path("signalled")
    if not mark.exists():
        mark.write_text(str(time.monotonic()))
    os.kill(os.getpid(), getattr(signal, name))


def signal_before(target: str, name: str, times: int = 1) -> None:
    """The process sends itself a signal as ``target`` (module:name or module:Class.name) is first called."""
    cheap_outputs()
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, last = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real = getattr(owner, last)
    state = {"left": times}

    def call(*args: Any, **settings: Any) -> Any:
        while state["left"]:
            state["left"] -= 1
            send_signal(name)
        return real(*args, **settings)

    setattr(owner, last, call)


def raise_in(target: str, error: str, at_call: int = 1) -> None:
    """``target`` raises the built-in ``error`` when it is called for the ``at_call``-th time, or with 0 every time."""
    cheap_outputs()
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, last = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real = getattr(owner, last)
    calls = [0]

    def call(*args: Any, **settings: Any) -> Any:
        calls[0] += 1
        if at_call in (0, calls[0]):
            raise getattr(builtins, error)("made by the test")
        return real(*args, **settings)

    setattr(owner, last, call)


def thread_dies_at_step(step: int) -> None:
    """A thread that is none of ours dies of an error."""
    at_step(step, lambda: threading.Thread(target=lambda: 1 // 0, name="stranger").start())
    cheap_outputs()


def clock_jumps_back_at_step(step: int, seconds: float) -> None:
    """The wall clock is set back, as by an operator or a time server."""
    real_ns, real, offset = time.time_ns, time.time, [0.0]
    time.time_ns = lambda: real_ns() - int(offset[0] * 1e9)
    time.time = lambda: real() - offset[0]

    def jump() -> None:
        offset[0] = seconds

    at_step(step, jump)
    cheap_outputs()


def slow_steps(seconds: float) -> None:
    """Every step takes a while, heartbeats are quick."""
    quick_heartbeats()
    cheap_outputs()
    at_step(0, lambda: time.sleep(seconds), every=True)


def at_step(step: int, action: Callable[[], object], *, every: bool = False) -> None:
    """``action`` as the loss of that step, or of every one, is recorded."""
    from cnn_jobs.cli.console import LineWatcher

    real = LineWatcher.metrics

    def metrics(self: LineWatcher, values: Mapping[str, float], at: int) -> None:
        if "train/loss" in values and (every or at == step):
            action()
        real(self, values, at)

    LineWatcher.metrics = metrics  # type: ignore[method-assign]


def kill_at_step(step: int, name: str) -> None:
    """The process sends itself the signal as the loss of optimiser step ``step`` is recorded."""
    cheap_outputs()
    at_step(step, lambda: send_signal(name))


def kill_at_steps_quickly(step: int, name: str) -> None:
    """``kill_at_step``, with ``quick_heartbeats``."""
    quick_heartbeats()
    kill_at_step(step, name)


def forget_generators(step: int, name: str) -> None:
    """``kill_at_step``, in a program whose checkpoints lack the random generators' states."""
    kill_at_step(step, name)
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
    """The continuing process of the negative control."""
    cheap_outputs()
    _without_generators()


def refused_metric() -> None:
    """The run records a metric under a name that MLflow does not take."""
    from cnn_jobs.runs import artifacts

    cheap_outputs()
    real = artifacts.final_metrics
    artifacts.final_metrics = lambda *args: {**real(*args), "bad#name": 1.0}


def journal_thread_dies() -> None:
    """The thread that syncs the journal meets a bug; the steps are slow enough for it to come to that."""
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
    """The frozen trunk's pass in six chunks."""
    from cnn_jobs.training import feature_cache

    cheap_outputs()
    feature_cache.CHUNK["cpu"] = 10
    feature_cache.INDEX_INTERVAL_S = 0.0


def kill_in_pass(chunk: int, name: str) -> None:
    """The process sends itself the signal before it keeps chunk number ``chunk`` of the frozen trunk's features."""
    small_chunks()
    from cnn_jobs.training.feature_cache import DiskFeatures

    real = DiskFeatures.write

    def write(self: DiskFeatures, number: int, features: Any) -> None:
        if number == chunk:
            send_signal(name)
        real(self, number, features)

    DiskFeatures.write = write  # type: ignore[method-assign]


def kill_at_step_in_chunks(step: int, name: str) -> None:
    """``kill_at_step``, after ``small_chunks``."""
    small_chunks()
    kill_at_step(step, name)


def chatty(crash: str = "") -> None:
    """In step 3 everything that a library may do to the output, secrets too; in step 4 an error, if asked for."""
    import logging
    import sys
    import warnings

    cheap_outputs()

    def talk() -> None:
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
        logging.getLogger("somebody").info("nobody wants to know")
        try:
            raise ValueError(f"caught, with {secret}")
        except ValueError:
            logging.getLogger("urllib3.util.retry").exception("tried again")

    def fail() -> None:
        raise ZeroDivisionError(f"made by a test, with {os.environ['AWS_SECRET_ACCESS_KEY']}")

    at_step(3, talk)
    if crash:
        at_step(4, fail)


def signal_in_step(step: int, name: str) -> None:
    """One of several processes sends itself the signal as it begins optimiser step ``step`` (from 0)."""
    before_step(step, lambda: send_signal(name))


def gloo_on_cuda() -> None:
    """Processes that share a device talk by gloo, which cannot take it from each other as NCCL does."""
    from cnn_jobs.runs import setup
    from cnn_jobs.training import process_group

    cheap_outputs()
    setup.backend_of = process_group.backend_of = lambda device: "gloo"


def gloo_on_cuda_signal_in_step(step: int, name: str) -> None:
    """``signal_in_step`` of such a process."""
    gloo_on_cuda()
    signal_in_step(step, name)


def error_in_step(step: int) -> None:
    """One of several processes meets a bug."""

    def fail() -> None:
        raise ZeroDivisionError("made by the test")

    before_step(step, fail)


def slow_save(seconds: float) -> None:
    """Each checkpoint takes longer than the silence after which a process counts as lost, which is cut short."""
    from cnn_jobs.distributed import rendezvous
    from cnn_jobs.runs.checkpointing import CheckpointSaver

    cheap_outputs()
    rendezvous.SILENT_S = 3.0
    real = CheckpointSaver.save

    def save(self: Any, state: Any) -> Path:
        time.sleep(seconds)
        return real(self, state)

    CheckpointSaver.save = save  # type: ignore[method-assign]


def before_step(step: int, action: Callable[[], object]) -> None:
    """``action`` in a process of several, before that step."""
    from cnn_jobs.training.process_group import ProcessGroup

    cheap_outputs()
    real = ProcessGroup.begin_step

    def begin_step(self: Any, seed: int, at: int) -> None:
        if at == step:
            action()
        real(self, seed, at)

    ProcessGroup.begin_step = begin_step  # type: ignore[method-assign]


def wait_for_shipping(step: int) -> None:
    """Before that step, until MLflow has a checkpoint: what the other processes know of the progress is then known."""
    _note_recorders()
    before_step(step, _shipped)


def ship_then_signal_in_step(step: int, name: str) -> None:
    """``wait_for_shipping``, and the signal after the others have had the time to hear of it."""

    _note_recorders()

    def act() -> None:
        _shipped()
        time.sleep(1.5)
        send_signal(name)

    before_step(step, act)


_recorders: list[Any] = []


def _note_recorders() -> None:
    from cnn_jobs.tracking.recorder import JournalRecorder

    real = JournalRecorder.start

    def start(self: Any, *args: Any) -> None:
        _recorders.append(self)
        real(self, *args)

    JournalRecorder.start = start  # type: ignore[method-assign]


def _shipped() -> None:
    end = time.monotonic() + 60
    while not _recorders[0].checkpoints_sent and time.monotonic() < end:
        time.sleep(0.05)
