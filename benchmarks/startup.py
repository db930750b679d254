"""Seconds from the start of ``cnn-jobs train`` to its first optimiser step, against importing its libraries."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.children import IMPORTS, environment, json_from, prepare_mlflow, python

TASK, DATA = "task2", "shapes"
DEADLINE_S = 300.0
# A loss is recorded between forward and backward pass: the second one shows that the first step is done.
FIRST_STEP_DONE = "select min(timestamp) from metrics where key = 'train/loss' and step = 2 and timestamp >= ?"


def measure_startup(folder: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of both, one figure per round; a first round that is not counted warms the file cache."""
    prepare_mlflow(folder, "startup")
    seconds: dict[str, list[float]] = {"imports": [], "first_step": []}
    for number in range(repeats + 1):
        both = {"imports": _imports(folder), "first_step": _first_step(folder)}
        if number:
            for name, value in both.items():
                seconds[name].append(value)
            print(f"  round {number} of {repeats}: " + ", ".join(f"{k} {v:.2f} s" for k, v in both.items()))
    return seconds


def _imports(folder: Path) -> float:
    """Seconds until the imports are done; the interpreter's shutdown does not count."""
    started = time.time()
    ended: float = json_from(["-c", f"{IMPORTS}; import time; print(time.time())"], environment(folder))
    return ended - started


def _first_step(folder: Path) -> float:
    """Seconds until the time stamp of the second step's loss in MLflow; then stops the process."""
    args = ["-m", "cnn_jobs", "train", TASK, "--data", DATA, "--epochs", "1", "--experiment", "startup"]
    with tempfile.TemporaryFile("w+") as log:
        started = time.time()
        with python(*args, env=environment(folder), stdout=log, stderr=subprocess.STDOUT) as process:
            while (stamp := _stamp(folder / "mlflow.db", started)) is None:
                if process.poll() is not None or time.time() - started > DEADLINE_S:
                    process.kill()
                    log.seek(0)
                    raise RuntimeError(f"no second step was recorded: {log.read()[-2000:]}")
                time.sleep(0.2)
            process.terminate()
            process.wait(timeout=60)
    return stamp / 1000 - started


def _stamp(database: Path, since: float) -> int | None:
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection:
        stamp: int | None = connection.execute(FIRST_STEP_DONE, (int(since * 1000),)).fetchone()[0]
        return stamp
