"""``python -m benchmarks.exporter``: what being watched costs a training step.

One training, in stretches of the same number of steps: alone, and with a metrics page that another process fetches
every second (Prometheus' usual interval is 15 s). The ratio of each pair of neighbours is one measurement. Beside it,
the CPU time of the monitor's calls in the training thread, as a share of that thread's.
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
from pathlib import Path
from typing import Any

from cnn_jobs.system.files import write_text
from cnn_jobs.system.process import keep_freed_memory, limit_spinning

OUT = Path(__file__).resolve().with_name("exporter.json")
INTERVAL_S = 1.0
SCRAPER = """
import sys, time, urllib.request
while True:
    urllib.request.urlopen(sys.argv[1], timeout=10).read()
    time.sleep(float(sys.argv[2]))
"""


class Timed:
    """The monitor, with the CPU time of its calls; takes the time at every ``steps`` steps."""

    def __init__(self, monitor: Any, steps: int, stretches: int) -> None:
        self.monitor, self.steps, self.left = monitor, steps, stretches
        self.cpu_s = 0.0
        self.marks: list[float] = []

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Passes it on."""
        began = time.thread_time()
        self.monitor.metrics(values, step)
        self.cpu_s += time.thread_time() - began


@contextlib.contextmanager
def scraped(port: int) -> Iterator[None]:
    """Another process fetches the page for as long as the context lasts."""
    url = f"http://127.0.0.1:{port}/metrics"
    with subprocess.Popen([sys.executable, "-c", SCRAPER, url, str(INTERVAL_S)]) as scraper:
        try:
            yield
        finally:
            scraper.terminate()


def measure(task_name: str, stretches: int, steps: int, threads: int) -> dict[str, Any]:
    """Images a second of each stretch, alone and watched in turn; the monitor's share of the thread's CPU time."""
    from benchmarks.setting import Setting, random_dataset
    from cnn_jobs.monitoring.metrics import Exporter
    from cnn_jobs.monitoring.monitor import Monitor
    from cnn_jobs.training.loop import DeviceTime, train

    setting = Setting.of(task_name, random_dataset(6000, 100), threads)
    setting.configure(shipped=True)
    state, ledger = setting.new_state(), DeviceTime()
    monitor = Monitor(task_name)
    with tempfile.TemporaryDirectory() as folder:
        monitor.opened(_live(setting, ledger, Path(folder)))
        exporter, timed = Exporter(monitor, 9399, "127.0.0.1", print), Timed(monitor, steps, stretches)
        speeds: dict[str, list[float]] = {"alone": [], "watched": []}
        cpu = time.thread_time()
        for number in range(2 * stretches + 1):
            end = state.step + steps
            watched = number % 2 == 0
            with scraped(exporter.port) if watched else contextlib.nullcontext():
                time.sleep(0.3)  # the scraper's own start is nobody's cost
                before = ledger.training_seconds
                train(
                    state, setting.data, setting.recipe, recorder=timed, ledger=ledger,
                    should_stop=lambda end=end: state.step >= end,
                )  # fmt: skip
            if number:  # the first warms up
                seconds = ledger.training_seconds - before
                speeds["watched" if watched else "alone"].append(steps * setting.recipe.batch_size / seconds)
        share = timed.cpu_s / (time.thread_time() - cpu)
        exporter.close()
    return {"speeds": speeds, "monitor_share": share, "steps": steps}


def _live(setting: Any, ledger: Any, folder: Path) -> Any:
    """What the page reads: a real journal, whose shipper has a server that is away."""
    from benchmarks.setting import random_dataset
    from cnn_jobs.runs.cost import RunCost
    from cnn_jobs.runs.setup import Run, RunOptions
    from cnn_jobs.tracking.client import TrackingClient
    from cnn_jobs.tracking.journal import Journal
    from cnn_jobs.tracking.recorder import JournalRecorder
    from cnn_jobs.tracking.records import AttemptMark, RunHeader, now_ms
    from cnn_jobs.training.observer import LiveAttempt

    options = RunOptions(tracking_uri="http://127.0.0.1:9", state_dir=folder)
    run = Run(setting.task, setting.recipe, options, random_dataset(10, 10), setting.placement, setting.threads)
    run.ledger = ledger
    header = RunHeader("benchmark", run.key, run.name, now_ms(), {}, "")
    journal, mark = Journal(folder / "journal.jsonl"), AttemptMark("id", 1, frozenset())
    recorder = JournalRecorder(folder, TrackingClient(options.tracking_uri), journal, header, mark)
    return LiveAttempt(run, time.time(), 100, 0, recorder, RunCost(1, time.monotonic(), folder / "ledger.json", ledger))


def main(arguments: list[str]) -> None:
    """Measures, prints and writes the raw figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exporter", description=__doc__)
    parser.add_argument("--stretches", type=int, default=15)
    parser.add_argument("--steps", type=int, default=150)
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
