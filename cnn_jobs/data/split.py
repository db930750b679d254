"""Which images are held out, and in which order the others come: pure functions of seeds."""

from __future__ import annotations

import hashlib

import torch

from cnn_jobs.errors import RecipeError


def derived_seed(purpose: str, *numbers: int) -> int:
    """A seed in [0, 2**63) for one purpose: different purposes and numbers share no stream of randomness."""
    text = ":".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator seeded by ``derived_seed``: the CPU's stream is the same whatever device trains."""
    return torch.Generator().manual_seed(derived_seed(purpose, *numbers))


def split_indices(images: int, validation_fraction: float, split_seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (int64, sorted) of the training and the validation images, drawn without replacement.

    Raises ``RecipeError`` where the fraction leaves one of the two empty.
    """
    held_out = round(images * validation_fraction)
    if not 0 < held_out < images:
        raise RecipeError(
            f"validation_fraction {validation_fraction} of {images} training images leaves {held_out} for "
            f"validation and {images - held_out} for training; both need at least one"
        )
    order = torch.randperm(images, generator=generator_for("split", split_seed))
    return order[held_out:].sort().values, order[:held_out].sort().values


def epoch_order(images: int, seed: int, epoch: int) -> torch.Tensor:
    """A permutation (int64) of range(images): the order of one epoch, the same for the same (seed, epoch)."""
    return torch.randperm(images, generator=generator_for("order", seed, epoch))
