"""The exported MLflow model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cnn_jobs.models.build import PixelModel, build_model
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking.model_export import save_mlflow_model


# torch.export and MLflow warn while loading.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["task2", pytest.param("task3e", marks=pytest.mark.slow)])
def test_exported_model_predicts_as_the_network(name: str, tmp_path: Path) -> None:
    import mlflow

    task = TASKS[name]
    network = build_model(task.network, (3, 32, 32), 10, seed=1).to(memory_format=torch.channels_last)
    network.train()
    with torch.no_grad():
        network(torch.randn(16, 3, 32, 32))  # changes BatchNorm's running statistics
    folder = save_mlflow_model(network, task.transform, (3, 32, 32), tmp_path / "model")
    assert network.training, "exporting must not change the network that is exported"

    pixels = torch.rand(5, 3, 32, 32)
    expected = PixelModel(network, task.transform).eval()(pixels)
    loaded = mlflow.pytorch.load_model(str(folder))
    for count in (1, 5):
        torch.testing.assert_close(loaded(pixels[:count]), expected[:count], rtol=1e-5, atol=1e-5)
    served = mlflow.pyfunc.load_model(str(folder)).predict(pixels.numpy())
    torch.testing.assert_close(torch.as_tensor(served), expected, rtol=1e-5, atol=1e-5)

    requirements = (folder / "requirements.txt").read_text().split()
    assert f"torch=={torch.__version__.split('+')[0]}" in requirements
