"""``python -m benchmarks.recording``: CPU time that recording takes from the training thread.

Measures the loop of a real run, with its journal and a checkpoint at every validation, with an MLflow server and
without a reachable one ("away"). Shares of CPU time, not of wall time: other programs on the machine do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cnn_jobs.system.process import keep_freed_memory, limit_spinning

OUT = Path(__file__).resolve().with_name("recording.json")
RECORDER_CALLS = ("metrics", "tags", "params", "dataset", "artifact", "sync")


def main(arguments: list[str]) -> None:
    """Measures, prints and writes the raw figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recording", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps per repeat")
    parser.add_argument("--tasks", default="task2,task3e")
    parser.add_argument("--json", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    limit_spinning()
    keep_freed_memory()
    from benchmarks.conditions import conditions
    from cnn_jobs.training.device import available_threads

    command = " ".join(["python -m benchmarks.recording", *arguments])
    facts = {**conditions(arguments, available_threads()), "command": command}
    results: dict[str, Any] = {"conditions": facts, "shares": {}}
    for task in options.tasks.split(","):
        for where in ("server", "away"):
            figures = [measure(task, where, options.steps) for _ in range(options.repeats)]
            results["shares"][f"{task}, {where}"] = figures
            for what in ("of_thread", "of_process"):
                values = [100 * each[what] for each in figures]
                spread = f"{min(values):.2f} to {max(values):.2f}"
                print(
                    f"{task}, {where}: {statistics.mean(values):.2f} % {what} ({spread}, n={len(values)})", flush=True
                )
            per_step = statistics.mean(each["microseconds_per_step"] for each in figures)
            print(f"{task}, {where}: {per_step:.0f} microseconds of CPU time per step", flush=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure(task: str, where: str, steps: int) -> dict[str, float]:
    """One training of ``steps`` steps; shares of the training thread's and of the whole process' CPU time."""
    from benchmarks.setting import random_dataset
    from cnn_jobs.local_server.server import start_server, stop_server

    with tempfile.TemporaryDirectory(prefix="cnn-jobs-recording-") as name:
        folder = Path(name)
        server = start_server(folder / "server") if where == "server" else None
        try:
            uri = server.url if server else "http://127.0.0.1:9"
            return _train(task, uri, folder, steps, random_dataset(6000, 100))
        finally:
            if server:
                stop_server(folder / "server")


def _train(task_name: str, uri: str, folder: Path, steps: int, dataset: Any) -> dict[str, float]:
    from cnn_jobs.errors import InterruptedRunError
    from cnn_jobs.runs import train as module
    from cnn_jobs.runs.setup import RunOptions, Session
    from cnn_jobs.system.signals import StopRequest
    from cnn_jobs.tasks import get_task
    from cnn_jobs.tracking.recorder import JournalRecorder
    from cnn_jobs.training.observer import Observer

    task, stop = get_task(task_name), StopRequest()
    spent = {"recorder": 0.0, "thread": 0.0, "process": 0.0}
    real_train, in_loop = module.train, [False]

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, which adds its CPU time to ``spent`` while the loop runs."""

        def run(*args: Any, **settings: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*args, **settings)
            finally:
                spent["recorder"] += (time.thread_time() - began) * in_loop[0]

        return run

    def train(*args: Any, **settings: Any) -> Any:
        in_loop[0], thread, process = True, time.thread_time(), time.process_time()
        try:
            return real_train(*args, **settings)
        finally:
            in_loop[0] = False
            spent["thread"] += time.thread_time() - thread
            spent["process"] += time.process_time() - process

    class StopAfter(Observer):
        def step_finished(self, step: int, loss: float) -> None:
            if step >= steps:
                stop.record(signal.SIGTERM)

    originals = {name: getattr(JournalRecorder, name) for name in RECORDER_CALLS}
    try:
        for name, call in originals.items():
            setattr(JournalRecorder, name, timed(call))
        module.train = train
        recipe = replace(task.recipe, epochs=1000, early_stop_count=0)
        options = RunOptions(tracking_uri=uri, state_dir=folder / "state", ship_deadline_s=0.0)
        with contextlib.suppress(InterruptedRunError):
            module.train_run(Session(task, options, dataset, StopAfter(), stop), recipe)
    finally:
        module.train = real_train
        for name, call in originals.items():
            setattr(JournalRecorder, name, call)
    return {
        "of_thread": spent["recorder"] / spent["thread"],
        "of_process": spent["recorder"] / spent["process"],
        "microseconds_per_step": 1e6 * spent["recorder"] / steps,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
