"""The whole state of a training between two steps."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from cnn_jobs.models.build import Backbone, build_network
from cnn_jobs.models.cpu_kernels.winograd import use_fast_convolutions
from cnn_jobs.networks.spec import Network
from cnn_jobs.recipe import Recipe, derived_seed
from cnn_jobs.training.device import Placement

FIGURES = ("step", "loss", "accuracy")
SAVED_KEYS = (
    "model", "optimizer", "epoch", "batch", "step", "train_losses", "validations", "best", "stopped_early", "generators"
)  # fmt: skip


@dataclass(frozen=True)
class Validation:
    """Figures on the validation set after ``step`` optimiser steps; loss in nats, accuracy in [0, 1]."""

    step: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Best:
    """The model with the lowest validation loss so far; ``weights`` is a copy on the CPU."""

    validation: Validation
    weights: dict[str, torch.Tensor]


@dataclass
class TrainState:
    """Model, optimiser, position and history. ``batch``: batches done in this epoch.

    Torch's global generators, from which dropout draws, belong to it: ``state_dict`` reads them, ``load_state_dict``
    sets them. The frozen ``backbone`` in front of ``model`` is a constant and not part of the ``state_dict``.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    backbone: Backbone | None = None
    epoch: int = 0
    batch: int = 0
    step: int = 0
    train_losses: list[float] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    best: Best | None = None
    stopped_early: bool = False

    @property
    def is_validated(self) -> bool:
        """Whether the last validation was of the present weights."""
        return bool(self.validations) and self.validations[-1].step == self.step

    def add_validation(self, validation: Validation) -> None:
        """Adds to the history, and copies the weights if the validation loss is the lowest so far."""
        self.validations.append(validation)
        if self.best is None or validation.loss < self.best.validation.loss:
            self.best = Best(validation, copy_weights(self.model))

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors that ``torch.load(weights_only=True)`` can read."""
        model = self.model.state_dict()
        return {
            "model": model,
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "train_losses": self.train_losses,
            "validations": [asdict(validation) for validation in self.validations],
            "best": self.best and {**asdict(self.best.validation), "weights": self._best_weights(model)},
            "stopped_early": self.stopped_early,
            "generators": _generator_states(),
        }

    def _best_weights(self, model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert self.best
        # The same tensors where the present model is the best: torch.save writes a tensor once.
        return model if self.best.validation.step == self.step else self.best.weights

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restores ``saved``, including the generators of this process; shares no tensor with it.

        Raises ``ValueError`` where a key is missing, before anything changes.
        """
        _check_keys(saved)
        self.model.load_state_dict(saved["model"])
        # A copy: torch's optimisers keep and modify the tensors that they are given.
        self.optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
        _fit_to_device(self.optimizer)
        self.epoch, self.batch, self.step = saved["epoch"], saved["batch"], saved["step"]
        self.train_losses = list(saved["train_losses"])
        self.validations = [_validation(values) for values in saved["validations"]]
        best = saved["best"]
        self.best = best and Best(_validation(best), {name: value.clone() for name, value in best["weights"].items()})
        self.stopped_early = saved["stopped_early"]
        _set_generators(saved["generators"])


def new_state(
    network: Network,
    recipe: Recipe,
    image: tuple[int, int, int],
    classes: int,
    placement: Placement,
    weights: Mapping[str, torch.Tensor] | None = None,
    *,
    fast_convolutions: bool = True,
) -> TrainState:
    """The state before the first step, with pretrained ``weights`` where given.

    ``fast_convolutions``: on a CPU, convolutions with many channels are computed by tiles.

    Seeds torch's generators, so that runs in one process do not depend on their order.
    """
    backbone, model = build_network(network, image, classes, derived_seed("weights", recipe.seed), weights)
    if fast_convolutions and placement.device.type == "cpu":
        use_fast_convolutions(model)
    model = model.to(placement.device).to(memory_format=placement.memory_format)
    backbone = backbone and backbone.to(placement.device).to(memory_format=placement.memory_format)
    torch.manual_seed(derived_seed("dropout", recipe.seed))
    return TrainState(model=model, optimizer=build_optimizer(model, recipe), backbone=backbone)


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over all parameters of ``model``."""
    if recipe.optimizer == "adam":
        on_cuda = next(model.parameters()).device.type == "cuda"  # for a step that is a CUDA graph
        return torch.optim.Adam(
            model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True, capturable=on_cuda
        )
    # Not fused: on a CPU fused SGD took twice as long, while fused Adam took half (docs/log.md).
    return torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def _fit_to_device(optimizer: torch.optim.Optimizer) -> None:
    """Adapts a loaded state that another device saved.

    Torch's fused Adam reads a parameter's moments in memory order and ignores their strides: moments saved in another
    memory format would be applied to other weights.
    """
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = group["params"][0].device.type == "cuda"
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def copy_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the model's parameters and buffers on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _check_keys(saved: Mapping[str, Any]) -> None:
    _require(saved, SAVED_KEYS, "the saved state")
    _require(saved["generators"], ("cpu", "cuda"), "generators of the saved state")
    for values in saved["validations"]:
        _require(values, FIGURES, "a validation of the saved state")
    if saved["best"]:
        _require(saved["best"], (*FIGURES, "weights"), "best of the saved state")


def _require(values: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    missing = [key for key in keys if key not in values]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")


def _validation(values: Mapping[str, Any]) -> Validation:
    return Validation(**{name: values[name] for name in FIGURES})


def _generator_states() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_generators(saved: Mapping[str, Any]) -> None:
    torch.set_rng_state(saved["cpu"].cpu())
    if torch.cuda.is_available():
        # This machine may have fewer or more devices than the one that saved.
        for device, generator in enumerate(saved["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(generator.cpu(), device)
