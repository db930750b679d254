"""Peak memory of a whole ``cnn-jobs train``, against the size of its data in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.children import environment, json_from, prepare_mlflow
from benchmarks.setting import random_dataset
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import write_prepared

TASK = "task2"
# Evaluation takes 500 images at a time: with 500 or more in each part, the small run needs the same working memory.
SMALL = (5000, 500)
IMPORTS = "import torch, mlflow, matplotlib.pyplot"
# A short epoch: that most images are held out for validation changes neither the data nor the working memory.
RUN = ["--epochs", "1", "--validation-fraction", "0.9", "--validations-per-epoch", "1", "--experiment", "memory"]


def measure_memory(folder: Path, dataset: Dataset, repeats: int) -> dict[str, Any]:
    """Bytes: the data in memory, and the peaks of the imports, of a run on little data and of a run on ``dataset``."""
    prepare_mlflow(folder, "memory")
    small = random_dataset(*SMALL)
    files = {"small": folder / "small.npz", "full": folder / "full.npz"}
    write_prepared(small, files["small"], compressed=False)
    write_prepared(dataset, files["full"], compressed=False)
    commands = {"imports": ["-c", IMPORTS]}
    for name, file in files.items():
        commands[name] = ["-m", "cnn_jobs", "train", TASK, "--data", str(file), *RUN]
    peaks: dict[str, list[int]] = {name: [] for name in commands}
    for number in range(repeats):
        for name, command in commands.items():
            peaks[name].append(json_from(["-m", "benchmarks.peak", *command], environment(folder)))
        shown = ", ".join(f"{name} {values[-1] / 1e6:,.0f} MB" for name, values in peaks.items())
        print(f"  round {number + 1} of {repeats}, peak: {shown}")
    return {"data_bytes": size_of(dataset), "small_data_bytes": size_of(small), "peak_bytes": peaks}


def size_of(dataset: Dataset) -> int:
    """Bytes of its images and labels in memory."""
    tensors = (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
