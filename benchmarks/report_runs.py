"""Many runs, written directly into MLflow's sqlite tables: logging them through the API would take hours."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.children import prepare_mlflow
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking.run_reader import NEEDED

EXPERIMENT = "many"
VALIDATIONS = 20
NAMES = [name for name in TASKS if name != "task4a"]
START_MS = 1_760_000_000_000


def make_store(folder: Path, runs: int, points: int) -> None:
    """Creates a database in ``folder`` with finished runs of seven tasks, many seeds each, and their artifacts.

    ``points``: metric values per run, ``VALIDATIONS`` of each validation metric; the rest are training losses.
    """
    prepare_mlflow(folder, EXPERIMENT)
    with sqlite3.connect(folder / "mlflow.db") as database:
        (experiment,) = database.execute(
            "SELECT experiment_id FROM experiments WHERE name = ?", [EXPERIMENT]
        ).fetchone()
        for number in range(runs):
            run_id = f"{number:032x}"
            _insert(database, experiment, run_id, number, folder / "artifacts" / run_id / "artifacts")
            rows = list(history(number, points))
            database.executemany(
                "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) VALUES (?, ?, ?, ?, ?, 0)",
                [(key, value, START_MS + step, run_id, step) for key, step, value in rows],
            )
            last = {key: (step, value) for key, step, value in rows}
            database.executemany(
                "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, ?, 0, ?)",
                [(key, value, START_MS + step, step, run_id) for key, (step, value) in last.items()],
            )
    database.close()


def history(number: int, points: int) -> Iterator[tuple[str, int, float]]:
    """(key, step, value) of all metrics of a run; always the same for the same ``number``."""
    dice = random.Random(number)
    steps = points - 2 * VALIDATIONS
    for step in range(1, steps + 1):
        yield "train/loss", step, 2 / (1 + step / 50) + 0.1 * dice.random()
    for place in range(1, VALIDATIONS + 1):
        step = place * steps // VALIDATIONS
        yield "val/loss", step, 2 / (1 + step / 60) + 0.1 * dice.random()
        yield "val/accuracy", step, 0.75 * place / VALIDATIONS + 0.02 * dice.random()
    for name in (*NEEDED, "train/images_per_second", "ledger/device_seconds", "ledger/device_seconds_thrown_away"):
        yield name, steps, 0.6 + 0.1 * dice.random()


def _insert(database: sqlite3.Connection, experiment: int, run_id: str, number: int, artifacts: Path) -> None:
    task, seed = NAMES[number % len(NAMES)], number // len(NAMES)
    database.execute(
        "INSERT INTO runs (run_uuid, name, source_type, user_id, status, start_time, end_time, lifecycle_stage, "
        "artifact_uri, experiment_id) VALUES (?, ?, 'LOCAL', 'bench', 'FINISHED', ?, ?, 'active', ?, ?)",
        [run_id, f"{task}-seed{seed}", START_MS + number, START_MS + number + 1, artifacts.as_uri(), experiment],
    )
    tags = {
        "cnn_jobs.task": task,
        "cnn_jobs.state": "finished",
        "cnn_jobs.group_hash": f"{NAMES.index(task):064x}",
        "cnn_jobs.data_digest": "d" * 64,
        "cnn_jobs.data": "made for this measurement",
        "cnn_jobs.synthetic_data": "true",
        "mlflow.runName": f"{task}-seed{seed}",
    }
    params: dict[str, Any] = {**TASKS[task].recipe.as_dict(), "seed": seed}
    for table, values in (("tags", tags), ("params", params)):
        database.executemany(
            f"INSERT INTO {table} (key, value, run_uuid) VALUES (?, ?, ?)",
            [(key, str(value), run_id) for key, value in values.items()],
        )
    artifacts.mkdir(parents=True)
    classes = [f"class{place}" for place in range(10)]
    rows = [",".join([each, *(str(90 if each == other else 1) for other in classes)]) for each in classes]
    (artifacts / "confusion.csv").write_text("\n".join(["true \\ predicted," + ",".join(classes), *rows]) + "\n")
    (artifacts / "lineage.json").write_text(json.dumps({"python": "3.11", "packages": {"torch": "2.14.1"}}))
