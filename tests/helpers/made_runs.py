"""Made-up training runs, in memory or in a real MLflow."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import matplotlib

from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking.run_reader import NEEDED, Confusion, Curve, TrainingRun

DIGEST = "d" * 64
CLASSES = ("cat", "dog")
STEPS = (10, 20, 30, 40)


def metrics_of(task: str, seed: int, shift: float = 0.0) -> dict[str, float]:
    """Final figures that depend on task and seed alone."""
    dice = random.Random(f"{task} {seed}")
    values = {name: (0.6 if "accuracy" in name else 0.9) + 0.02 * dice.random() + shift for name in NEEDED}
    values |= {"ledger/attempts": 2.0, "ledger/steps": 44.0, "ledger/wall_seconds": 12.5 + seed}
    values |= {"ledger/device_seconds": 10.25 + seed, "ledger/device_seconds_thrown_away": 1.5}
    return values | {"train/images_per_second": 1000.0 + dice.random()}


def params_of(task: str, seed: int, **changed: Any) -> dict[str, str]:
    """Recipe fields as params."""
    return {name: str(value) for name, value in {**TASKS[task].recipe.as_dict(), "seed": seed, **changed}.items()}


def tags_of(task: str, **more: str) -> dict[str, str]:
    """Tags of a finished run."""
    return {
        "cnn_jobs.task": task,
        "cnn_jobs.state": "finished",
        "cnn_jobs.group_hash": f"{task}-hash".ljust(64, "0"),
        "cnn_jobs.data_digest": DIGEST,
        "cnn_jobs.data": "photographs",
        "cnn_jobs.synthetic_data": "false",
        "cnn_jobs.attempt": "2",
        "cnn_jobs.device": "cpu (some CPU)",
        "cnn_jobs.threads": "2",
        "mlflow.source.git.commit": "c" * 40,
        **more,
    }


def curve_of(task: str, seed: int, key: str) -> Curve:
    """A noisy curve at ``STEPS``, rising for the accuracy and falling for losses."""
    dice = random.Random(f"{task} {seed} {key}")
    sign = 1 if key == "val/accuracy" else -1
    return Curve(STEPS, tuple(0.5 + sign * 0.05 * place + 0.6 * dice.random() for place in range(len(STEPS))))


def made_run(task: str, seed: int, *, run_id: str = "", **changes: Any) -> TrainingRun:
    """A run in memory; ``changes`` replace its fields."""
    values: dict[str, Any] = {
        "run_id": run_id or f"{task}-{seed}".ljust(32, "0"),
        "name": f"{task}-seed{seed}",
        "url": "",
        "status": "FINISHED",
        "start_ms": 1_760_000_000_000 + seed,
        "params": params_of(task, seed),
        "metrics": metrics_of(task, seed),
        "tags": tags_of(task),
        "train_loss": curve_of(task, seed, "train/loss"),
        "val_loss": curve_of(task, seed, "val/loss"),
        "val_accuracy": curve_of(task, seed, "val/accuracy"),
        "confusion": Confusion(CLASSES, ((40 + seed, 10), (5, 45))),
        "versions": {"python": "3.11.7", "torch": "2.14.1"},
    }
    return TrainingRun(**{**values, **changes})


def log_run(client: Any, experiment_id: str, folder: Path, task: str, seed: int, **changes: Any) -> str:
    """The same run in MLflow, logged with its own client; ``changes``: name, status, tags, metrics, params, without."""
    from mlflow.entities import Metric, Param, RunTag

    made = made_run(task, seed)
    run = client.create_run(experiment_id, start_time=made.start_ms, run_name=changes.get("name", made.name))
    metrics = changes.get("metrics", made.metrics)
    rows = [Metric(name, value, 1, STEPS[-1]) for name, value in metrics.items()]
    curves = {"val/loss": made.val_loss, "val/accuracy": made.val_accuracy}
    for key, curve in curves.items():
        rows += [Metric(key, value, 1, step) for step, value in zip(curve.steps, curve.values, strict=True)]
    rows += [Metric("train/loss", 1 / step + seed, 1, step) for step in range(1, STEPS[-1] + 1)]
    params = [Param(name, value) for name, value in changes.get("params", made.params).items()]
    tags = [RunTag(name, value) for name, value in changes.get("tags", made.tags).items()]
    client.log_batch(run.info.run_id, rows, params, tags)
    for name, content in files_of(seed).items():
        if name not in changes.get("without", ()):
            (folder / name).write_bytes(content)
            client.log_artifact(run.info.run_id, str(folder / name))
    if status := changes.get("status", "FINISHED"):
        client.set_terminated(run.info.run_id, status)
    return str(run.info.run_id)


def files_of(seed: int) -> dict[str, bytes]:
    """Artifacts by name."""
    picture = next(Path(matplotlib.get_data_path()).glob("images/home.png")).read_bytes()
    confusion = f"true \\ predicted,cat,dog\ncat,{40 + seed},10\ndog,5,45\n".encode()
    lineage = json.dumps({"python": "3.11.7", "packages": {"torch": "2.14.1"}}).encode()
    return {"confusion.csv": confusion, "lineage.json": lineage, "mistakes.png": picture}
