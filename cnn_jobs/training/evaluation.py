"""Loss and accuracy of a model on a part of a data set."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from cnn_jobs.data.batches import Examples

# Images at a time. On a CPU 500 took 10 % (task2) and 30 % (task3e) longer: activations no longer fit the cache. For a
# GPU fewer, larger launches are better (not measured).
EVALUATION_BATCH = {"cpu": 100, "cuda": 1000}


@dataclass(frozen=True)
class Evaluation:
    """``loss``: mean cross-entropy in nats; ``accuracy`` in [0, 1]; ``logits``: (N, classes) float32 on the CPU."""

    loss: float
    accuracy: float
    logits: torch.Tensor


def precision_context(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast to bfloat16 if the recipe's precision is ``bf16``."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Fraction correct, in [0, 1]. logits: (N, classes) float; labels: (N,) int64. ValueError if N differs."""
    if len(logits) != len(labels):
        raise ValueError(f"{len(logits)} rows of logits, {len(labels)} labels")
    return float((logits.argmax(dim=1) == labels).double().mean())


class EvaluationStoppedError(Exception):
    """``should_stop`` was true before the last batch. Internal: no user sees it."""


def evaluate(
    model: nn.Module,
    images: Examples,
    precision: str = "fp32",
    batch_size: int = 0,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """The model's figures on every image, in evaluation mode; restores the model's mode afterwards.

    ``batch_size`` 0 chooses by the device. Raises ``EvaluationStoppedError`` where ``should_stop``, asked between two
    batches, is true.
    """
    batch_size = batch_size or EVALUATION_BATCH[images.device.type]
    was_training = model.training
    model.eval()
    try:
        logits = _logits(model, images, precision, batch_size, should_stop).cpu()
    finally:
        model.train(was_training)
    labels = images.labels[images.indices].cpu()
    # In double precision: the mean over 45,000 images then does not depend on the batches.
    loss = F.cross_entropy(logits.double(), labels)
    return Evaluation(float(loss), accuracy(logits, labels), logits)


@torch.inference_mode()
def _logits(
    model: nn.Module, images: Examples, precision: str, batch_size: int, should_stop: Callable[[], bool]
) -> torch.Tensor:
    """(N, classes) float32 on the device."""
    logits = torch.empty(0)
    for number, (pixels, _) in enumerate(images.in_order(batch_size)):
        if number and should_stop():
            raise EvaluationStoppedError
        with precision_context(precision, pixels.device):
            part = model(pixels)
        # Into one preallocated block: a small tensor kept from each batch would pin the large ones between them.
        if number == 0:
            logits = torch.empty(len(images), part.shape[1], device=part.device)
        logits[number * batch_size : number * batch_size + len(part)] = part
    return logits
