"""Wrote ``runs.tar.xz`` with cnn-jobs at commit a4698c6: runs that later versions must still understand.

    git worktree add /tmp/a4698c6 a4698c6
    cd /tmp/a4698c6 && PYTHONPATH=. python <this file> OUT.tar.xz

The archive holds ``data.npz`` (56 training and 20 test images of 3x8x8), ``mlflow.db`` and ``mlruns`` with the runs
``finished``, ``killed`` and ``interrupted`` of the experiment ``old``, and two state directories: that of ``killed``
(SIGKILL at step 15 of 20, checkpoint at step 10) and that of ``unsent`` (trained to the end without MLflow). The state
directory of ``interrupted`` (SIGTERM at step 15) is lost.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

# Sends this process the signal named by $SIGNAL as the loss of step 15 is recorded.
CHILD = """
import os, signal, sys
from cnn_jobs.tracking import recorder
real = recorder.JournalRecorder.metrics
def metrics(self, values, step):
    real(self, values, step)
    if "train/loss" in values and step == 15 and os.environ.get("SIGNAL"):
        if os.environ["SIGNAL"] == "SIGKILL":
            import time
            end = time.monotonic() + 60
            while self.backlog().records and time.monotonic() < end:
                time.sleep(0.05)
        os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
recorder.JournalRecorder.metrics = metrics
from cnn_jobs.cli import main
main()
"""
OPTIONS = [
    "--epochs",
    "2",
    "--batch-size",
    "5",
    "--validations-per-epoch",
    "1",
    "--early-stop-count",
    "0",
    "--threads",
    "1",
]


def write_data(path: Path) -> None:
    """Three classes: a bright band, left, middle or right, in noise."""
    from cnn_jobs.data.dataset import Dataset
    from cnn_jobs.data.prepared import write_prepared

    random = np.random.default_rng(0)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 3
        images = random.integers(0, 80, (count, 3, 8, 8), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[:, :, label * 2 : (label + 1) * 2] += 150
        return images, labels

    dataset = Dataset.from_arrays(
        name="stripes", uri="stripes", classes=("left", "middle", "right"), train=part(56), test=part(20)
    )
    write_prepared(dataset, path, compressed=True)


def train(folder: Path, key: str, code: int, *, signal: str = "", uri: str = "", more: tuple[str, ...] = ()) -> None:
    """One run of task2, which has to end with ``code``."""
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": uri or f"sqlite:///{folder / 'mlflow.db'}",
        "CNN_JOBS_STATE_DIR": str(folder / f"state-{key}"),
        "CNN_JOBS_GIT_COMMIT": "a4698c6",
        "SIGNAL": signal,
    }
    command = [sys.executable, "-c", CHILD, "train", "task2", "--data", "data.npz", "--experiment", "old"]
    command += [*OPTIONS, "--run-key", key, *more]
    ended = subprocess.run(command, cwd=folder, env=environment, check=False)
    assert ended.returncode == code, ended.returncode


def main(out: Path) -> None:
    """Makes the archive."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder / "data.npz")
        train(folder, "finished", 0)
        train(folder, "killed", -9, signal="SIGKILL")
        train(folder, "interrupted", 75, signal="SIGTERM")
        train(folder, "unsent", 75, uri="http://127.0.0.1:9", more=("--ship-deadline", "1"))
        shutil.rmtree(folder / "state-interrupted")
        shutil.rmtree(folder / "state-finished")
        (folder / "where").write_text(str(folder))  # stands in the database, and in paths of the journals
        with tarfile.open(out, "w:xz", preset=9) as archive:
            archive.add(folder, ".")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
