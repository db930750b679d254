"""The recipe: every choice that decides the result of a training, each default written once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from cnn_jobs.errors import RecipeError

OPTIMIZERS = ("sgd", "adam")
AUGMENTATIONS = ("none", "flip", "flip+crop")
PRECISIONS = ("fp32", "bf16")
NO_WEIGHTS = "none"


def _option(default: Any, description: str, *, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field that carries what the command line needs to offer it."""
    return field(default=default, metadata={"help": description, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters of one training, without its network (see ``tasks``).

    Raises ``RecipeError`` (exit 2) where a field is out of range or contradicts another.
    """

    epochs: int = _option(10, "Passes over the training images, at most.")
    batch_size: int = _option(64, "Images a step; an incomplete last batch is dropped.")
    optimizer: str = _option("sgd", "Optimiser.", choices=OPTIMIZERS)
    lr: float = _option(5e-2, "Learning rate.")
    momentum: float = _option(0.0, "Momentum of SGD.")
    weight_decay: float = _option(0.0, "L2 penalty added to the gradient.")
    early_stop_count: int = _option(
        4, "Stop when the oldest of this many last validation losses is the smallest; 0 = never."
    )
    validations_per_epoch: int = _option(2, "Validations an epoch, the last one at its end.")
    validation_fraction: float = _option(0.1, "Part of the training images held out for validation.")
    augmentation: str = _option("none", "Random changes of training images.", choices=AUGMENTATIONS)
    weights: str = _option(
        NO_WEIGHTS,
        "Pretrained weights, for task4a: imagenet, none, a file or s3://bucket/key of a ResNet18's state dict.",
    )
    precision: str = _option("fp32", "Arithmetic of forward and backward pass.", choices=PRECISIONS)
    seed: int = _option(0, "Seed of weights, order, augmentation and dropout.")
    split_seed: int = _option(0, "Seed of the validation split, the same for every seed.")

    def __post_init__(self) -> None:
        for name, allowed, rule in _RULES:
            value = getattr(self, name)
            if not allowed(value):
                raise RecipeError(f"{name} is {value}, but must be {rule}; see 'cnn-jobs train --help'")
        if self.optimizer == "adam" and self.momentum:
            raise RecipeError(
                f"momentum is {self.momentum}, but the optimiser is adam, which has none of that name; "
                "leave momentum at 0 or choose --optimizer sgd"
            )

    def as_dict(self) -> dict[str, Any]:
        """Field name to value, in the order of the fields."""
        return asdict(self)


def _at_least(least: int) -> Callable[[Any], bool]:
    return lambda value: value >= least


def _finite_and(test: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda value: math.isfinite(value) and test(value)


# A field, the test of its value and the rule in words; seeds stay below 2**63, as torch's generators want them.
_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("epochs", _at_least(1), "at least 1"),
    ("batch_size", _at_least(1), "at least 1"),
    ("optimizer", OPTIMIZERS.__contains__, f"one of {', '.join(OPTIMIZERS)}"),
    ("lr", _finite_and(lambda value: value > 0), "a finite number above 0"),
    ("momentum", _finite_and(lambda value: 0 <= value < 1), "at least 0 and below 1"),
    ("weight_decay", _finite_and(lambda value: value >= 0), "a finite number of at least 0"),
    ("early_stop_count", lambda value: value == 0 or value >= 2, "0 (never) or at least 2"),
    ("validations_per_epoch", _at_least(1), "at least 1"),
    ("validation_fraction", _finite_and(lambda value: 0 < value < 1), "above 0 and below 1"),
    ("augmentation", AUGMENTATIONS.__contains__, f"one of {', '.join(AUGMENTATIONS)}"),
    ("weights", bool, "imagenet, none, a file or s3://bucket/key"),
    ("precision", PRECISIONS.__contains__, f"one of {', '.join(PRECISIONS)}"),
    ("seed", lambda value: 0 <= value < 2**63, "at least 0 and below 2**63"),
    ("split_seed", lambda value: 0 <= value < 2**63, "at least 0 and below 2**63"),
)

FIELD_NAMES = tuple(f.name for f in fields(Recipe))


def digest_of(content: dict[str, Any]) -> str:
    """SHA-256 (64 hex digits) of ``content`` as canonical JSON: the same for the same values, in any order."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
