"""All that a training is at one moment, between two steps."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from cnn_jobs.data.split import derived_seed
from cnn_jobs.models.build import build_model
from cnn_jobs.models.spec import ConvNet
from cnn_jobs.recipe import Recipe
from cnn_jobs.training.device import Placement


@dataclass(frozen=True)
class Validation:
    """Figures on the validation set after ``step`` optimiser steps; loss in nats, accuracy in [0, 1]."""

    step: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Best:
    """The model of the lowest validation loss so far; ``weights`` is a copy on the CPU."""

    validation: Validation
    weights: dict[str, torch.Tensor]


@dataclass
class TrainState:
    """Model, optimiser, place in the training and history. ``batch`` counts the batches done in this epoch.

    Torch's own generators (dropout draws from them) belong to it: ``state_dict`` reads them, ``load_state_dict``
    sets them.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    batch: int = 0
    step: int = 0
    train_losses: list[float] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    best: Best | None = None
    stopped_early: bool = False

    def note_validation(self, validation: Validation) -> None:
        """Adds to the history, and keeps the weights if no validation loss was lower before."""
        self.validations.append(validation)
        if self.best is None or validation.loss < self.best.validation.loss:
            self.best = Best(validation, copy_weights(self.model))

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, as ``torch.load(weights_only=True)`` takes them back."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "train_losses": self.train_losses,
            "validations": [asdict(validation) for validation in self.validations],
            "best": self.best and {**asdict(self.best.validation), "weights": self.best.weights},
            "stopped_early": self.stopped_early,
            "generators": _generator_states(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Takes over what ``state_dict`` gave, the generators of this process included."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.epoch, self.batch, self.step = saved["epoch"], saved["batch"], saved["step"]
        self.train_losses = list(saved["train_losses"])
        self.validations = [Validation(**values) for values in saved["validations"]]
        self.best = None
        if saved["best"]:
            best = dict(saved["best"])
            weights = best.pop("weights")
            self.best = Best(Validation(**best), weights)
        self.stopped_early = saved["stopped_early"]
        torch.set_rng_state(saved["generators"]["cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(saved["generators"]["cuda"])


def new_state(
    network: ConvNet, recipe: Recipe, image: tuple[int, int, int], classes: int, placement: Placement
) -> TrainState:
    """The state before the first step; seeds torch's generators, so that runs in one process do not depend
    on each other's order."""
    model = build_model(network, image, classes, derived_seed("weights", recipe.seed))
    model = model.to(placement.device).to(memory_format=placement.memory_format)
    torch.manual_seed(derived_seed("dropout", recipe.seed))
    return TrainState(model=model, optimizer=build_optimizer(model, recipe))


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over all parameters of ``model``."""
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    # Not fused: on a CPU that took twice as long for plain SGD, while Adam's took half (docs/log.md).
    return torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def copy_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the model's parameters and buffers on the CPU, that later steps do not change."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _generator_states() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}
