"""What is refused before anything is recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.errors import DeviceError, RecipeError, StateDirError
from cnn_jobs.runs.setup import check_distributed
from cnn_jobs.tasks import TASKS, Task
from cnn_jobs.training.device import select_device
from tests.helpers.runs import RECIPE, TASK, options, train_run
from tests.helpers.tracking import client

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.mark.parametrize(
    ("task", "changes", "settings", "error", "message"),
    [
        pytest.param(TASK, {}, {"device": "cuda"}, DeviceError, "device is cuda", marks=no_cuda),
        (TASK, {"batch_size": 5000}, {}, RecipeError, "batch_size 5000 is larger than the"),
        (TASK, {}, {"state_dir": Path("file/state")}, StateDirError, "cannot be written"),
        (TASKS["task2"], {"weights": "imagenet"}, {}, RecipeError, "task2 starts from random ones"),
    ],
    ids=["device", "batch size", "state directory", "weights"],
)
def test_mistake_leaves_no_run(
    task: Task,
    changes: dict[str, Any],
    settings: dict[str, Any],
    error: type[Exception],
    message: str,
    mlflow_uri: str,
    tmp_path: Path,
    tiny_dataset: Dataset,
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=message):
        train_run(options(mlflow_uri, tmp_path, **settings), tiny_dataset, task, replace(RECIPE, **changes))
    assert client(mlflow_uri).get_experiment_by_name("cnn-jobs") is None


def test_distributed_training_on_cpus_excludes_batch_norm() -> None:
    def is_refused(task: Task) -> bool:
        try:
            check_distributed(task, select_device("cpu"))
        except RecipeError:
            return True
        return False

    assert {name for name, task in TASKS.items() if not is_refused(task)} == {"task2", "task3d-plain"}
