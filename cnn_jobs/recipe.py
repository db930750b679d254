"""The recipe: every choice that decides the result of a training. Series of recipes: seeds and grids."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_type_hints

from cnn_jobs.errors import RecipeError, UserError

OPTIMIZERS = ("sgd", "adam")
AUGMENTATIONS = ("none", "flip", "flip+crop")
PRECISIONS = ("fp32", "bf16")
NO_WEIGHTS = "none"
# The fields of the first recipes. Hashes of existing runs contain them, whatever their values.
ALWAYS_HASHED = (
    "epochs", "batch_size", "optimizer", "lr", "momentum", "weight_decay", "early_stop_count", "validations_per_epoch",
    "validation_fraction", "augmentation", "weights", "precision", "seed", "split_seed",
)  # fmt: skip


def _option(
    default: Any, description: str, *, choices: tuple[str, ...] | None = None, introduced_as: Any = None
) -> Any:
    """A dataclass field with what the command line needs to offer it.

    ``introduced_as``: the default with which the field was introduced, where the present one differs.
    """
    introduced = default if introduced_as is None else introduced_as
    return field(default=default, metadata={"help": description, "choices": choices, "introduced_as": introduced})


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

    def hashed(self) -> dict[str, Any]:
        """What a recipe hash covers: ``ALWAYS_HASHED``, and each later field unless it has the default with which it
        was introduced. A new field therefore leaves the hashes of existing runs unchanged."""
        values = asdict(self)
        later = [each for each in fields(self) if each.name not in ALWAYS_HASHED]
        at_default = {each.name for each in later if values[each.name] == each.metadata["introduced_as"]}
        return {name: value for name, value in values.items() if name not in at_default}


def introduced_values() -> dict[str, Any]:
    """Each field's default when it was introduced: its value in runs that are older than the field."""
    return {each.name: each.metadata["introduced_as"] for each in fields(Recipe)}


def _at_least(least: int) -> Callable[[Any], bool]:
    return lambda value: value >= least


def _finite_and(test: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda value: math.isfinite(value) and test(value)


# A field, the test of its value and the rule as text; seeds stay below 2**63, as torch's generators want them.
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


def derived_seed(purpose: str, *numbers: int) -> int:
    """A seed in [0, 2**63): other purposes and other numbers have independent streams of randomness."""
    text = ":".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Planned:
    """One run of a series; ``label`` has what distinguishes it, as in ``lr0.001-seed2``."""

    label: str
    recipe: Recipe


def parse_seeds(text: str) -> list[int]:
    """``0-4`` or ``0,2,5-7`` to seeds, in that order. Raises ``UserError`` for anything else, and for a repetition."""
    return parse_numbers(text, "--seeds", "0,2,5-7", what="a seed")


def parse_numbers(text: str, option: str, example: str, *, what: str = "a number") -> list[int]:
    """Numbers and ranges, in their order. Raises ``UserError`` for anything else, and for a repetition."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise UserError(f"{option} is '{text}', but must be a range or a list, as in 0-4 or {example}")
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{option} is '{text}', which names {what} twice; name each once")
    return numbers


def parse_sweep(text: str) -> tuple[str, list[object]]:
    """``lr=1e-3,1e-4`` to the field's name and its values.

    Raises ``UserError`` for an unknown field or value, and for a repetition.
    """
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or name not in FIELD_NAMES:
        raise UserError(f"--sweep is '{text}', but must be FIELD=VALUE,... with a field of {', '.join(FIELD_NAMES)}")
    kind = get_type_hints(Recipe)[name]
    try:
        parsed = [kind(value.strip()) for value in values.split(",")]
    except ValueError:
        raise UserError(f"--sweep is '{text}', but every value of {name} must be of type {kind.__name__}") from None
    if len(set(parsed)) < len(parsed):
        raise UserError(f"--sweep is '{text}', which names a value twice; name each once")
    return name, parsed


def plan(recipe: Recipe, seeds: str = "", sweeps: Sequence[str] = ()) -> list[Planned]:
    """The grid of all sweeps and seeds around ``recipe``; one run without a label where there are neither.

    Every recipe is checked here, before the first is trained.
    """
    axes = dict(parse_sweep(sweep) for sweep in sweeps)
    if len(axes) < len(sweeps):
        raise UserError("--sweep names one field twice; put all its values into one, as in lr=1e-3,1e-4")
    if seeds:
        if "seed" in axes:
            raise UserError("--seeds and --sweep seed=... mean the same; use one of them")
        axes["seed"] = list(parse_seeds(seeds))
    if not axes:
        return [Planned("", recipe)]
    planned = []
    for values in itertools.product(*axes.values()):
        changes = dict(zip(axes, values, strict=True))
        label = "-".join(f"{name}{value}" for name, value in changes.items())
        planned.append(Planned(label, replace(recipe, **changes)))  # type: ignore[arg-type]
    return planned


def pick(planned: Sequence[Planned], point: int) -> Planned:
    """The run of this number, counted from 0: what an index of an Indexed Job trains. Raises ``UserError``."""
    if point >= len(planned):
        raise UserError(f"--point is {point}, but --seeds and --sweep give {len(planned)} runs, counted from 0")
    return planned[point]
