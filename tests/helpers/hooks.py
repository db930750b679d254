"""Faults in a child process, installed before it runs the command; signals are real ones.

Steps are optimiser steps. A target is ``module:name`` or ``module:Class.name``.
"""

from __future__ import annotations

import builtins
import importlib
import itertools
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

_REPORT_STEP = "cnn_jobs.cli.console:LineProgress.step_finished"
_BEGIN_STEP = "cnn_jobs.training.process_group:DistributedGroup.begin_step"


def before(target: str, action: Callable[..., object]) -> None:
    """Calls ``action`` before each call of ``target``, with the same arguments."""
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, last = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real = getattr(owner, last)

    def call(*args: Any, **settings: Any) -> Any:
        action(*args, **settings)
        return real(*args, **settings)

    setattr(owner, last, call)


def send_signal(name: str) -> None:
    """The process sends itself a signal and stores the time."""
    path = Path("signalled")
    if not path.exists():
        path.write_text(str(time.monotonic()))
    os.kill(os.getpid(), getattr(signal, name))


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


# -- at a call ---------------------------------------------------------------------------------------------------------


def signal_before(target: str, name: str, times: int = 1) -> None:
    """``times`` signals before the first call of ``target``."""
    cheap_outputs()
    calls = itertools.count()
    before(target, lambda *args, **settings: [send_signal(name) for _ in range(times if next(calls) == 0 else 0)])


def raise_in(target: str, error: str, at_call: int = 1) -> None:
    """``target`` raises the built-in ``error`` at its ``at_call``-th call, or with 0 at every call."""
    cheap_outputs()
    calls = itertools.count(1)

    def raise_error(*args: Any, **settings: Any) -> None:
        if at_call in (0, next(calls)):
            raise getattr(builtins, error)("made by the test")

    before(target, raise_error)


# -- at a step ---------------------------------------------------------------------------------------------------------


def at_step(step: int, action: Callable[[], object]) -> None:
    """``action`` when the loss of that step is reported."""
    cheap_outputs()
    before(_REPORT_STEP, lambda progress, number, loss: action() if number == step else None)


def signal_at_step(step: int, name: str) -> None:
    """The signal when the loss of that step is reported."""
    at_step(step, lambda: send_signal(name))


def thread_dies_at_step(step: int) -> None:
    """A library's thread dies of an error."""
    at_step(step, lambda: threading.Thread(target=lambda: 1 // 0, name="library").start())


def clock_jumps_back_at_step(step: int, seconds: float) -> None:
    """The wall clock is set back."""
    real_ns, real, offset = time.time_ns, time.time, [0.0]
    time.time_ns = lambda: real_ns() - int(offset[0] * 1e9)
    time.time = lambda: real() - offset[0]
    at_step(step, lambda: offset.__setitem__(0, seconds))


def slow_steps(seconds: float) -> None:
    """``quick_heartbeats``, and steps of at least ``seconds``."""
    quick_heartbeats()
    cheap_outputs()
    before(_REPORT_STEP, lambda *args: time.sleep(seconds))


def noisy_libraries(crash: str = "") -> None:
    """Step 3 prints everything that a library may print, with secrets; step 4 raises an error, where ``crash``."""

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


# -- control experiment: without the random generators of checkpoints --------------------------------------------------


def forget_generators(step: int, name: str) -> None:
    """``signal_at_step``, in a program that ignores the random generators in checkpoints."""
    signal_at_step(step, name)
    resume_without_generators()


def resume_without_generators() -> None:
    """The process that resumes in that control experiment."""
    import torch

    from cnn_jobs.training.state import TrainState

    cheap_outputs()
    real = TrainState.load_state_dict

    def load(self: TrainState, saved: dict[str, Any]) -> None:
        generator = torch.get_rng_state()
        real(self, saved)
        torch.set_rng_state(generator)

    TrainState.load_state_dict = load  # type: ignore[method-assign]


# -- other faults ------------------------------------------------------------------------------------------------------


def refused_metric() -> None:
    """The run records a metric with a name that MLflow rejects."""
    from cnn_jobs.runs import artifacts

    cheap_outputs()
    real = artifacts.final_metrics
    artifacts.final_metrics = lambda *args: {**real(*args), "bad#name": 1.0}


def journal_thread_dies() -> None:
    """The thread that syncs the journal dies of a bug, in a training slow enough to notice."""
    from cnn_jobs.tracking import recorder

    def fail(cost: Any) -> None:
        if threading.current_thread().name == "journal-sync":
            raise ZeroDivisionError("made by the test")

    recorder.SYNC_INTERVAL_S = 0.05
    slow_steps(0.1)
    before("cnn_jobs.runs.cost:RunCost.write", fail)


def small_chunks() -> None:
    """The frozen backbone computes its features in six chunks."""
    from cnn_jobs.training import feature_cache, feature_store

    cheap_outputs()
    feature_cache.CHUNK["cpu"] = 10
    feature_store.INDEX_INTERVAL_S = 0.0


def signal_in_pass(chunk: int, name: str) -> None:
    """The signal before chunk number ``chunk`` of the features is written."""
    small_chunks()
    before(
        "cnn_jobs.training.feature_store:DiskFeatures.write",
        lambda store, number, features: send_signal(name) if number == chunk else None,
    )


def signal_at_step_in_chunks(step: int, name: str) -> None:
    """``signal_at_step``, with ``small_chunks``."""
    small_chunks()
    signal_at_step(step, name)


# -- in one of several processes ---------------------------------------------------------------------------------------


def before_step(step: int, action: Callable[[], object]) -> None:
    """``action`` before that step, counted from 0."""
    cheap_outputs()
    before(_BEGIN_STEP, lambda group, seed, number: action() if number == step else None)


def signal_before_step(step: int, name: str) -> None:
    """The signal before that step."""
    before_step(step, lambda: send_signal(name))


def error_before_step(step: int) -> None:
    """A bug before that step."""

    def fail() -> None:
        raise ZeroDivisionError("made by the test")

    before_step(step, fail)


def slow_save(seconds: float) -> None:
    """Each checkpoint takes longer than the (shortened) time after which a silent process counts as lost."""
    from cnn_jobs.distributed import rendezvous

    cheap_outputs()
    rendezvous.SILENT_S = 3.0
    before("cnn_jobs.runs.checkpointing:RunCheckpointer.save", lambda *args: time.sleep(seconds))


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


def wait_for_upload(step: int, then: Callable[[], object] = lambda: None) -> None:
    """Waits before that step until MLflow has a checkpoint."""
    recorders: list[Any] = []
    before("cnn_jobs.tracking.recorder:JournalRecorder.start", lambda recorder, *args: recorders.append(recorder))

    def wait() -> None:
        end = time.monotonic() + 60
        while not recorders[0].checkpoints_sent and time.monotonic() < end:
            time.sleep(0.05)
        then()

    before_step(step, wait)


def signal_after_upload(step: int, name: str) -> None:
    """``wait_for_upload``, and the signal once the other processes know of the checkpoint."""

    def send_later() -> None:
        time.sleep(1.5)
        send_signal(name)

    wait_for_upload(step, send_later)
