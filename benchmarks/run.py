"""``python -m benchmarks.run``: measures everything and writes docs/performance.md; see there."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from cnn_jobs.system.process import keep_freed_memory, limit_spinning

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("speed", "ablations", "wait_policy", "startup", "memory")
PAGE, JSON_FILE = ROOT / "docs/performance.md", ROOT / "benchmarks/results.json"
# The side parts: their effects are larger than the noise, and the whole should not take much longer than it has to.
SIDE_REPEATS, MEMORY_REPEATS = 5, 2
IMAGES, QUICK_IMAGES = (50_000, 10_000), (10_000, 1000)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; ``--quick`` and ``--parts`` write nothing without ``--out`` or ``--json``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="rounds of the speed part, at least 5 for a claim")
    parser.add_argument("--steps", type=int, default=0, help="timed steps a round; 0: about 1.5 s of our loop")
    parser.add_argument("--tasks", default="task2,task3e", help="tasks, with commas")
    parser.add_argument("--parts", default="", help=f"only these, with commas: {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, help="page to write into (docs/performance.md when all is measured)")
    parser.add_argument("--json", type=Path, help="raw figures (benchmarks/results.json when all is measured)")
    parser.add_argument("--render", action="store_true", help="measure nothing: write the page from the raw figures")
    parser.add_argument("--quick", action="store_true", help="a trial: one round, 3 steps, little data")
    options = parser.parse_args(arguments)
    unknown = set(filter(None, options.parts.split(","))) - set(PARTS)
    if unknown:
        parser.error(f"--parts: no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if options.repeats < 1 or options.steps < 0:
        parser.error("--repeats must be at least 1, --steps at least 0")
    if options.render or not (options.parts or options.quick):
        options.out, options.json = options.out or PAGE, options.json or JSON_FILE
    if options.quick:
        options.repeats, options.steps = 1, 3
    return options


def measure(options: argparse.Namespace, arguments: list[str], folder: Path) -> dict[str, Any]:
    """The raw figures of every part asked for, and the conditions; ``folder`` takes databases and data."""
    from benchmarks.conditions import conditions
    from benchmarks.memory import measure_memory
    from benchmarks.setting import Setting, random_dataset
    from benchmarks.speed import measure_ablations, measure_speed
    from benchmarks.startup import measure_startup
    from benchmarks.wait_policy import measure_wait_policy
    from cnn_jobs.tasks import get_task
    from cnn_jobs.tracking.connection import configure_client
    from cnn_jobs.training.device import available_threads

    configure_client()
    parts = options.parts.split(",") if options.parts else PARTS
    tasks = [get_task(name).name for name in options.tasks.split(",")]
    threads = available_threads()
    dataset = random_dataset(*(QUICK_IMAGES if options.quick else IMAGES))
    settings = {task: Setting.of(task, dataset, threads) for task in tasks}
    side_repeats = min(options.repeats, SIDE_REPEATS)
    results: dict[str, Any] = {"conditions": conditions(arguments, threads)}

    def by_task(part: str, measure_one: Any) -> None:
        if part in parts:
            results[part] = {}
            for task in tasks:
                _print(f"{part}, {task}")
                results[part][task] = measure_one(task)

    steps = options.steps
    by_task("speed", lambda t: measure_speed(settings[t], _new(folder, t), repeats=options.repeats, steps=steps))
    by_task("ablations", lambda t: measure_ablations(settings[t], repeats=side_repeats, steps=steps))
    by_task("wait_policy", lambda t: measure_wait_policy(t, threads, repeats=side_repeats, steps=steps))
    if "startup" in parts:
        _print("startup")
        results["startup"] = measure_startup(_new(folder, "startup"), side_repeats)
    if "memory" in parts:
        _print("memory")
        repeats = min(options.repeats, MEMORY_REPEATS)
        results["memory"] = measure_memory(_new(folder, "memory"), dataset, repeats)
    return results


def _new(folder: Path, name: str) -> Path:
    """A folder of its own: no part finds its MLflow database filled by another."""
    (folder / name).mkdir()
    return folder / name


def _print(text: str) -> None:
    print(text, flush=True)


def main(arguments: list[str]) -> None:
    """Measures, writes, prints."""
    options = parse(arguments)
    # As 'cnn-jobs train' does, and like there before torch is imported.
    limit_spinning()
    keep_freed_memory()
    from benchmarks.render import into_page, render
    from cnn_jobs.system.files import write_text

    if options.render:
        results = json.loads(options.json.read_text(encoding="utf-8"))
    else:
        load = os.getloadavg()[0]
        if load > 0.5:
            _print(f"the machine is busy (load average {load:.2f}): figures will be lower and spread further")
        with tempfile.TemporaryDirectory(prefix="cnn-jobs-bench-") as folder:
            results = measure(options, arguments, Path(folder))
        if options.json:
            write_text(options.json, json.dumps(results, indent=1) + "\n")
    rendered = render(results)
    print(rendered)
    if options.out:
        write_text(options.out, into_page(options.out.read_text(encoding="utf-8"), rendered))


if __name__ == "__main__":
    main(sys.argv[1:])
