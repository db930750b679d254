"""``python -m benchmarks.cuda``: speed of steps and whole runs on real images, on a CUDA device.

``speed`` and ``trainings`` measure and write benchmarks/cuda.json; ``render`` writes the tables of docs/cuda.md from
it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cuda_page import JSON_FILE, write_page
from cnn_jobs.system.files import write_text

if TYPE_CHECKING:
    from benchmarks.contenders import Contender
    from benchmarks.setting import Setting

# Worker processes of the usual loop and of Lightning; the usual advice is one for each CPU of the GPU's share.
WORKERS = 8
TASKS = ("task2", "task3e")
# Timed steps per round. Our loop does more: it records its graph again in every round.
STEPS = {
    "ours": 4000,
    "ours_no_graph": 1000,
    "ceiling": 1000,
    "ceiling_bf16": 1000,
    "usual_0": 150,
    f"usual_{WORKERS}": 600,
    f"lightning_{WORKERS}": 400,
}
METRICS = ("val_accuracy", "test_accuracy", "train_accuracy")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__)
    parser.add_argument("part", choices=["speed", "trainings", "render"])
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the speed part")
    parser.add_argument("--steps", type=float, default=1.0, help="timed steps per round, as a share of the default")
    parser.add_argument("--data", default="cifar10", help="data set of the trainings, as for 'cnn-jobs train'")
    parser.add_argument("--seeds", default="0-4", help="seeds of each task")
    parser.add_argument("--jobs", type=int, default=4, help="tasks that share the device at a time")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: a trial of the benchmark")
    parser.add_argument("--images", type=int, default=50_000, help="training images of the speed part")
    parser.add_argument("--out", type=Path, default=JSON_FILE, help="raw figures; keeps the other parts of this file")
    return parser.parse_args(arguments)


def measure_speed(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Images per second of every contender, by task and round; yields all results so far after each task."""
    from benchmarks.rounds import closing_all, measure_rounds
    from benchmarks.setting import Setting, random_dataset
    from cnn_jobs.tracking.connection import configure_client

    configure_client()
    steps = {name: max(5, round(options.steps * count)) for name, count in STEPS.items()}
    dataset, found = random_dataset(options.images, options.images // 5), {}
    for task in TASKS:
        setting = Setting.of(task, dataset, threads=1, device=options.device)
        setting.configure(shipped=True)
        with tempfile.TemporaryDirectory() as folder:
            contenders = _contenders(setting, Path(folder))
            with closing_all(contenders):
                print(task, flush=True)
                found[task] = measure_rounds(
                    contenders, repeats=options.repeats, steps=steps, batch_size=setting.recipe.batch_size
                )
        yield {"steps": steps, "images_per_second": found}


def _contenders(setting: Setting, folder: Path) -> dict[str, Contender]:
    """Raises ``AssertionError`` if the usual network's logits differ from ours."""
    from benchmarks.contenders import Ceiling, OurLoop
    from benchmarks.lightning_loop import LightningLoop
    from benchmarks.networks import assert_same_function, usual_network
    from benchmarks.usual import PictureDataset, UsualLoop

    pictures, ours = PictureDataset(setting), {}
    for name, graph in (("ours", True), ("ours_no_graph", False)):
        (folder / name).mkdir()
        ours[name] = OurLoop(setting, folder / name, graph=graph)
    usual = usual_network(setting.task.network, ours["ours"].model).to(setting.placement.device)
    assert_same_function(ours["ours"].model, usual, setting.constant_batch()[0])
    return {
        **ours,
        "ceiling": Ceiling(setting),
        "ceiling_bf16": Ceiling(setting, precision="bf16"),
        **{f"usual_{workers}": UsualLoop(setting, pictures, workers) for workers in (0, WORKERS)},
        f"lightning_{WORKERS}": LightningLoop(setting, pictures, WORKERS),
    }


def measure_trainings(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One run that has the device to itself, with the graph and without; then every task's runs on real images.
    Yields all results so far after each task."""
    from cnn_jobs.tasks import TASKS as ALL

    asked = {"seeds": options.seeds, "tasks": len(ALL)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data.npz"
        _run("data", "prepare", options.data, str(data), folder=folder)
        one_run = partial(_trained, data=data, device=options.device)
        alone = [
            one_run(folder / name, "task3e", "0", *more)[0]
            for name, more in (("graph", ()), ("no-graph", ("--no-graph",)))
        ]
        runs: dict[str, Any] = {}
        with ThreadPoolExecutor(options.jobs) as pool:
            pending = {pool.submit(one_run, folder / task, task, options.seeds): task for task in ALL}
            for done in as_completed(pending):
                runs[pending[done]] = done.result()
                in_order = {task: runs[task] for task in ALL if task in runs}
                yield {"jobs": options.jobs, "asked": asked, "alone": alone, "runs": in_order}


def _trained(folder: Path, task: str, seeds: str, *more: str, data: Path, device: str) -> list[dict[str, Any]]:
    """Figures of the task's runs, made one after another in one process; task4a starts from random weights."""
    folder.mkdir()
    if task == "task4a":
        more = ("--weights", "none", *more)
    began = time.monotonic()
    _run("train", task, "--data", str(data), "--seeds", seeds, "--device", device, *more, folder=folder)
    print(f"  {task}: seeds {seeds} in {time.monotonic() - began:.0f} s", flush=True)
    return [_figures(run) for run in _runs(folder)]


def _run(*arguments: str, folder: Path) -> None:
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "CNN_JOBS_STATE_DIR": str(folder / "state"),
    }
    command = [sys.executable, "-m", "cnn_jobs", *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: exit code {ran.returncode}\n{ran.stderr[-3000:]}")


def _runs(folder: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiments = [each.experiment_id for each in client.search_experiments()]
    found = client.search_runs(experiments, "attributes.status = 'FINISHED'", order_by=["attributes.start_time"])
    return [run for run in found if "last/test_accuracy" in run.data.metrics]


def _figures(run: Any) -> dict[str, Any]:
    metrics: Mapping[str, float] = run.data.metrics
    names = [f"{which}/{name}" for which in ("best", "last") for name in METRICS]
    names += ["train/images_per_second", "attempt/steps", "attempt/device_seconds", "attempt/wall_seconds"]
    return {"seed": int(run.data.params["seed"]), **{name: metrics[name] for name in names}}


def device_facts() -> dict[str, Any]:
    """The CUDA device, in addition to ``conditions``; empty on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "device_memory_bytes": properties.total_memory,
    }


def main(arguments: list[str]) -> None:
    """Measures one part and writes its figures, or renders the page."""
    options = parse(arguments)
    if options.part != "render":
        from benchmarks.conditions import conditions

        measure = {"speed": measure_speed, "trainings": measure_trainings}[options.part]
        results = json.loads(options.out.read_text()) if options.out.exists() else {}
        facts = {**conditions(arguments, 1, program="benchmarks.cuda"), **device_facts()}
        for content in measure(options):  # written after each task: the time on the device may run out
            results[options.part] = {"conditions": facts, **content}
            write_text(options.out, json.dumps(results, indent=1) + "\n")
    if options.out == JSON_FILE:
        write_page()


if __name__ == "__main__":
    main(sys.argv[1:])
