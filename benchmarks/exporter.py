"""``python -m benchmarks.exporter``: what the metrics page costs a training.

One training, in stretches of the same number of steps, alternately without scrapes ("alone") and with another process
that fetches the metrics page every second ("watched"; Prometheus' usual interval is 15 s). The ratio of two neighbours
is one measurement. The CPU time of the monitor's calls is measured as a share of the training thread's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnn_jobs.system.files import write_text
from cnn_jobs.system.process import keep_freed_memory, limit_spinning
from cnn_jobs.training.observer import Observer

if TYPE_CHECKING:  # torch is imported once the threads are configured
    from cnn_jobs.runs.cost import RunCost
    from cnn_jobs.tracking.recorder import JournalRecorder
    from cnn_jobs.training.loop import DeviceTime

OUT = Path(__file__).resolve().with_name("exporter.json")
INTERVAL_S = 1.0
SCRAPER = """
import sys, time, urllib.request
while True:
    urllib.request.urlopen(sys.argv[1], timeout=10).read()
    time.sleep(float(sys.argv[2]))
"""


class Timed(Observer):
    """Calls the monitor after each step; ``cpu_s`` is the CPU time of these calls."""

    def __init__(self, monitor: Observer) -> None:
        self._monitor = monitor
        self.cpu_s = 0.0

    def step_finished(self, step: int, loss: float) -> None:
        """Measures the monitor's call."""
        began = time.thread_time()
        self._monitor.step_finished(step, loss)
        self.cpu_s += time.thread_time() - began


@dataclass
class Live:
    """A ``LiveAttempt``, which the page reads, with a real recorder that cannot reach its server."""

    cost: RunCost
    recorder: JournalRecorder
    batch_size: int
    epochs: int
    run_key: str = "key"
    device_type: str = "cpu"
    steps_per_epoch: int = 100
    first_step: int = 0
    number: int = 1
    checkpointed_at: float = 0.0

    @property
    def steps_done(self) -> int:
        """Optimiser steps so far."""
        return self.cost.own.steps

    def costs(self) -> Mapping[str, float]:
        """The costs of the run."""
        return self.cost.totals()

    def backlog(self) -> tuple[int, float]:
        """Records that the server has not acknowledged, and for how many seconds."""
        return self.recorder.backlog()

    def upload_errors(self) -> Mapping[str, int]:
        """Failed calls to MLflow, by kind."""
        return self.recorder.upload_errors


@contextlib.contextmanager
def scraped(port: int) -> Iterator[None]:
    """A child process fetches the page repeatedly while the context lasts."""
    url = f"http://127.0.0.1:{port}/metrics"
    with subprocess.Popen([sys.executable, "-c", SCRAPER, url, str(INTERVAL_S)]) as scraper:
        try:
            yield
        finally:
            scraper.terminate()


def measure(task_name: str, stretches: int, steps: int, threads: int) -> dict[str, Any]:
    """Images per second of each stretch, and the monitor's share of the training thread's CPU time."""
    from benchmarks.setting import Setting, random_dataset
    from cnn_jobs.monitoring.metrics import Exporter
    from cnn_jobs.monitoring.monitor import Monitor
    from cnn_jobs.training.loop import DeviceTime, train

    setting = Setting.of(task_name, random_dataset(6000, 100), threads)
    setting.configure(shipped=True)
    state, spent = setting.new_state(), DeviceTime()
    monitor = Monitor(task_name)
    with tempfile.TemporaryDirectory() as folder:
        monitor.attempt_opened(_live(setting, spent, Path(folder)))
        exporter, timed = Exporter(monitor, 9399, "127.0.0.1", print), Timed(monitor)
        speeds: dict[str, list[float]] = {"alone": [], "watched": []}
        cpu = time.thread_time()
        for number in range(2 * stretches + 1):
            end = state.step + steps
            watched = number % 2 == 0
            with scraped(exporter.port) if watched else contextlib.nullcontext():
                time.sleep(0.3)  # the scraper's own start does not count
                before = spent.training_seconds
                train(
                    state, setting.data, setting.recipe, observer=timed, spent=spent,
                    should_stop=lambda end=end: state.step >= end,
                )  # fmt: skip
            if number:  # the first warms up
                seconds = spent.training_seconds - before
                speeds["watched" if watched else "alone"].append(steps * setting.recipe.batch_size / seconds)
        share = timed.cpu_s / (time.thread_time() - cpu)
        exporter.close()
    return {"speeds": speeds, "monitor_share": share, "steps": steps}


def _live(setting: Any, spent: DeviceTime, folder: Path) -> Live:
    from cnn_jobs.runs.cost import RunCost
    from cnn_jobs.tracking.client import TrackingClient
    from cnn_jobs.tracking.recorder import JournalRecorder
    from cnn_jobs.tracking.records import RunHeader, now_ms
    from cnn_jobs.tracking.run_folder import RunFolder

    run_folder = RunFolder(folder / "key")
    header = RunHeader("benchmark", "key", "benchmark", now_ms(), {}, "")
    recorder = JournalRecorder(run_folder, TrackingClient("http://127.0.0.1:9"), header, run_folder.next_mark())
    cost = RunCost(1, time.monotonic(), folder / "ledger.json", spent)
    return Live(cost, recorder, setting.recipe.batch_size, setting.recipe.epochs)


def main(arguments: list[str]) -> None:
    """Measures, prints and writes the raw figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exporter", description=__doc__)
    parser.add_argument("--stretches", type=int, default=15, help="stretches of each kind")
    parser.add_argument("--steps", type=int, default=150, help="optimiser steps per stretch")
    parser.add_argument("--tasks", default="task2,task3e")
    parser.add_argument("--json", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    limit_spinning()
    keep_freed_memory()
    from benchmarks.conditions import conditions
    from cnn_jobs.training.device import available_threads

    threads = available_threads()
    results: dict[str, Any] = {"conditions": conditions(arguments, threads, "benchmarks.exporter"), "tasks": {}}
    for task in options.tasks.split(","):
        found = measure(task, options.stretches, options.steps, threads)
        results["tasks"][task] = found
        pairs = zip(found["speeds"]["watched"], found["speeds"]["alone"], strict=False)
        ratios = [watched / alone for watched, alone in pairs]
        print(
            f"{task}: watched over alone {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}, n={len(ratios)}); "
            f"monitor {100 * found['monitor_share']:.3f} % of the thread's CPU time",
            flush=True,
        )
    write_text(options.json, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
