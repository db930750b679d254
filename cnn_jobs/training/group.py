"""What one process of a training shares with the others, as the loop sees it: nothing where it is alone."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from cnn_jobs.data.batches import Examples
from cnn_jobs.training.evaluation import Evaluation
from cnn_jobs.training.state import TrainState


class Group(Protocol):
    """The processes of a training, as the loop sees them. Every process calls the same methods in the same order."""

    alone: bool

    def adopt(self, state: TrainState) -> None:
        """Before the first step: all of them begin with the state of rank 0."""

    def close(self, state: TrainState) -> None:
        """After the last step: each is alone again."""

    def part(self, batch: torch.Tensor) -> torch.Tensor:
        """This process' share of a global batch, along its first dimension."""

    def share(self, examples: Examples) -> Examples:
        """This process' share of what is evaluated."""

    def begin_step(self, seed: int, step: int) -> None:
        """Called before each step: dropout must not draw the same in all processes."""

    def stopping(self, wish: bool) -> bool:
        """Whether all of them stop now, because one of them wished it."""

    def reduce(self, model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
        """Makes gradients, and the loss that is returned, those of the global batch.

        Raises ``PeerLostError``; the weights are then as they were before the step.
        """

    def total(self, part: Evaluation | None, images: int) -> Evaluation | None:
        """Figures over all shares, of which this one has so many images; ``None`` where one was not finished."""


class OneProcess:
    """Nothing to share."""

    alone = True

    def adopt(self, state: TrainState) -> None:
        """It has it already."""

    def close(self, state: TrainState) -> None:
        """It was alone all the time."""

    def part(self, batch: torch.Tensor) -> torch.Tensor:
        """All of it."""
        return batch

    def share(self, examples: Examples) -> Examples:
        """All of them."""
        return examples

    def begin_step(self, seed: int, step: int) -> None:
        """The generators go on from where they are."""

    def stopping(self, wish: bool) -> bool:
        """Its own wish."""
        return wish

    def reduce(self, model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
        """Its own gradients."""
        return loss

    def total(self, part: Evaluation | None, images: int) -> Evaluation | None:
        """Its own figures."""
        return part
