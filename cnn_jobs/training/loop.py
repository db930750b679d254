"""The training loop: one pass from top to bottom, able to stop and go on between any two steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch.nn import functional as F

from cnn_jobs.data.batches import TrainingData, augmentation_generator
from cnn_jobs.data.split import epoch_order
from cnn_jobs.errors import DivergedError, RecipeError
from cnn_jobs.recipe import Recipe
from cnn_jobs.training.early_stopping import should_stop_early
from cnn_jobs.training.evaluation import evaluate, precision_context
from cnn_jobs.training.recorder import NullRecorder, Recorder
from cnn_jobs.training.state import TrainState, Validation

# On CUDA a loss is read back only every so many steps: each reading waits for the device.
CUDA_LOSS_INTERVAL = 20


class Ending(Enum):
    """Why the loop returned."""

    COMPLETE = "complete"
    INTERRUPTED = "interrupted"


@dataclass
class Ledger:
    """What one attempt spent: optimiser steps, and seconds of the device in training and in evaluation."""

    steps: int = 0
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    @property
    def device_seconds(self) -> float:
        """Training and evaluation together."""
        return self.training_seconds + self.evaluation_seconds


def train(
    state: TrainState,
    data: TrainingData,
    recipe: Recipe,
    *,
    recorder: Recorder | None = None,
    ledger: Ledger | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_validation: Callable[[TrainState], object] = lambda state: None,
) -> Ending:
    """Trains from where ``state`` stands to the end of the recipe, or until ``should_stop`` (asked before a step).

    Raises ``DivergedError`` at a loss that is not finite, on a CPU before it changes the weights, and ``RecipeError``
    where the data does not fill one batch.
    """
    recorder, ledger = recorder or NullRecorder(), ledger or Ledger()
    steps = data.steps_per_epoch(recipe.batch_size)
    validate_after = validation_batches(steps, recipe, len(data.train))
    losses = LossLog(state, recorder, data.train.images.device)
    stretch = _Stretch(ledger)

    state.model.train()
    while state.epoch < recipe.epochs and not state.stopped_early:
        order = epoch_order(len(data.train), recipe.seed, state.epoch).to(data.train.images.device)
        batches = torch.split(order[: steps * recipe.batch_size], recipe.batch_size)
        while state.batch < steps and not state.stopped_early:
            if should_stop():
                losses.flush()
                stretch.book()
                return Ending.INTERRUPTED
            generator = augmentation_generator(recipe.seed, state.epoch, state.batch)
            images, labels = data.train.batch(batches[state.batch], recipe.augmentation, generator)

            state.optimizer.zero_grad()
            with precision_context(recipe.precision, images.device):
                loss = F.cross_entropy(state.model(images), labels)
            losses.add(loss.detach())
            loss.backward()  # type: ignore[no-untyped-call]
            state.optimizer.step()
            state.step, state.batch = state.step + 1, state.batch + 1
            stretch.book(steps=1)

            if state.batch in validate_after:
                losses.flush()
                stretch.book()
                speed = stretch.steps * recipe.batch_size / stretch.seconds
                recorder.metrics({"train/images_per_second": speed}, state.step)
                validate(state, data, recipe, recorder, ledger)
                on_validation(state)
                stretch = _Stretch(ledger)
        if state.batch == steps:
            state.epoch, state.batch = state.epoch + 1, 0
    return Ending.COMPLETE


def validate(state: TrainState, data: TrainingData, recipe: Recipe, recorder: Recorder, ledger: Ledger) -> None:
    """Evaluates on the validation set, keeps the best weights and decides about early stopping."""
    started = time.perf_counter()
    result = evaluate(state.model, data.validation, recipe.precision)
    ledger.evaluation_seconds += time.perf_counter() - started
    if not math.isfinite(result.loss):
        raise DivergedError(_diverged("validation", result.loss, state.step))
    state.note_validation(Validation(state.step, result.loss, result.accuracy))
    recorder.metrics({"val/loss": result.loss, "val/accuracy": result.accuracy}, state.step)
    losses = [validation.loss for validation in state.validations]
    state.stopped_early = should_stop_early(losses, recipe.early_stop_count)


def validation_batches(steps: int, recipe: Recipe, images: int) -> frozenset[int]:
    """After how many batches of an epoch to validate: evenly spaced, the last one at the epoch's end.

    Raises ``RecipeError`` where the epoch has fewer steps than that.
    """
    if steps < 1:
        raise RecipeError(
            f"batch_size {recipe.batch_size} is larger than the {images} training images; choose a smaller one"
        )
    times = recipe.validations_per_epoch
    if times > steps:
        raise RecipeError(f"validations_per_epoch {times} is more than the {steps} steps of an epoch; lower it")
    return frozenset(steps * (number + 1) // times for number in range(times))


@dataclass
class LossLog:
    """Reads losses back from the device, in order, and refuses one that is not finite."""

    state: TrainState
    recorder: Recorder
    device: torch.device
    pending: list[torch.Tensor] = field(default_factory=list)

    def add(self, loss: torch.Tensor) -> None:
        """The loss of the step that is under way, a scalar on the device."""
        self.pending.append(loss)
        if self.device.type == "cpu" or len(self.pending) == CUDA_LOSS_INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Records every loss that waits. Raises ``DivergedError`` at the first that is not finite."""
        if not self.pending:
            return
        values = torch.stack(self.pending).float().tolist()
        self.pending.clear()
        for value in values:
            step = len(self.state.train_losses) + 1
            if not math.isfinite(value):
                raise DivergedError(_diverged("training", value, step))
            self.state.train_losses.append(value)
            self.recorder.metrics({"train/loss": value}, step)


def _diverged(kind: str, loss: float, step: int) -> str:
    return f"the {kind} loss is {loss} at step {step}: the training diverged; try a smaller --lr"


class _Stretch:
    """Training steps between two validations. Books each on the ledger as it ends: what follows may raise."""

    def __init__(self, ledger: Ledger) -> None:
        self.steps = 0
        self.seconds = 0.0
        self._ledger = ledger
        self._booked = time.perf_counter()

    def book(self, steps: int = 0) -> None:
        """Adds ``steps`` and the wall time since the last booking."""
        now = time.perf_counter()
        seconds, self._booked = now - self._booked, now
        self.steps, self.seconds = self.steps + steps, self.seconds + seconds
        self._ledger.steps += steps
        self._ledger.training_seconds += seconds
