"""Exports a trained network as an MLflow model."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import torch
from torch import nn

from cnn_jobs.models.build import PixelModel
from cnn_jobs.networks.spec import InputTransform
from cnn_jobs.system.environment import version_of
from cnn_jobs.tracking.connection import configure_client

# Two images: torch.export treats a batch of one as a constant.
EXAMPLE_BATCH = 2


def save_mlflow_model(network: nn.Module, transform: InputTransform, image: tuple[int, int, int], folder: Path) -> Path:
    """Writes a model to ``folder`` that ``mlflow.pytorch.load_model`` loads: (N, *image) pixels in [0, 1] to logits.

    In the format of torch.export: loading it needs neither this package nor pickle.
    """
    configure_client()
    import mlflow.pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    # Exported from the CPU in the plain memory format: it must load on any machine.
    model = PixelModel(copy.deepcopy(network), transform).cpu().to(memory_format=torch.contiguous_format).eval()
    example = torch.zeros(EXAMPLE_BATCH, *image)
    with torch.inference_mode():
        classes = model(example).shape[1]
    import numpy as np

    float32 = np.dtype("float32")
    signature = ModelSignature(
        inputs=Schema([TensorSpec(float32, (-1, *image))]),
        outputs=Schema([TensorSpec(float32, (-1, classes))]),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow and torch.export; users cannot act on them
        mlflow.pytorch.save_model(
            model,
            str(folder),
            serialization_format="pt2",
            signature=signature,
            input_example=example.numpy(),
            pip_requirements=[f"{name}=={version_of(name)}" for name in ("torch", "mlflow", "numpy")],
        )
    return folder
