"""The training loop: one pass from top to bottom, able to stop and go on between any two steps, and in a validation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

import torch
from torch.nn import functional as F

from cnn_jobs.data.batches import Examples, TrainingData, augmentation_generator
from cnn_jobs.data.split import epoch_order
from cnn_jobs.errors import DivergedError, RecipeError
from cnn_jobs.recipe import Recipe
from cnn_jobs.training.cuda_graph import GraphedStep, Step
from cnn_jobs.training.evaluation import Evaluation, EvaluationStoppedError, evaluate, precision_context
from cnn_jobs.training.observer import NullRecorder, Recorder
from cnn_jobs.training.process_group import Group, OneProcess
from cnn_jobs.training.state import TrainState, Validation

# On CUDA a loss is read back only every so many steps: each reading waits for the device.
CUDA_LOSS_INTERVAL = 20


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
                raise diverged("training", value, step)
            self.state.train_losses.append(value)
            self.recorder.metrics({"train/loss": value}, step)


def diverged(kind: str, loss: float, step: int) -> DivergedError:
    """The error for a ``kind`` of loss that is not finite."""
    return DivergedError(f"the {kind} loss is {loss} at step {step}: the training diverged; try a smaller --lr")


def should_stop_early(validation_losses: Sequence[float], count: int) -> bool:
    """Whether the oldest of the last ``count`` validation losses is the smallest of them; 0 = never.

    The rule of the course's hand-out. With fewer than ``count`` losses the answer is no.
    """
    if not count or len(validation_losses) < count:
        return False
    recent = validation_losses[-count:]
    return recent[0] == min(recent)


class Ending(Enum):
    """Why the loop returned."""

    COMPLETE = "complete"
    INTERRUPTED = "interrupted"


@dataclass
class DeviceTime:
    """What one attempt spent: optimiser steps, and seconds of the device in training, in evaluation and in the frozen
    part's pass over the images.

    ``repeated_seconds``: of that pass, what only made good what an earlier attempt had done. Of a distributed training
    the seconds are rank 0's; it holds as many ``devices`` as there are processes, and ``device_seconds`` counts them.
    """

    steps: int = 0
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    feature_seconds: float = 0.0
    repeated_seconds: float = 0.0
    devices: int = 1

    @property
    def device_seconds(self) -> float:
        """All together, of all devices."""
        return self.devices * (self.training_seconds + self.evaluation_seconds + self.feature_seconds)


def train(
    state: TrainState,
    data: TrainingData,
    recipe: Recipe,
    *,
    group: Group | None = None,
    recorder: Recorder | None = None,
    ledger: DeviceTime | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_validation: Callable[[TrainState], object] = lambda state: None,
    save_due: Callable[[], bool] = lambda: False,
    on_save: Callable[[TrainState], object] = lambda state: None,
    graph: bool = True,
) -> Ending:
    """Trains from where ``state`` stands to the end of the recipe, or until ``should_stop``.

    That is asked before every step and validation, and between the batches of a validation, which is then done anew
    by whoever goes on. ``save_due`` is asked after every step; ``on_save`` and ``on_validation`` see all that is
    recorded so far, and their time is nobody's training time. Of several processes each has its own share of every
    batch, by its ``group``; they do all their steps together, and stop together. On CUDA one process by itself records
    its step as a ``graph``, which is faster and changes no bit.
    Raises ``DivergedError`` at a loss that is not finite, on a CPU before it changes the weights, ``RecipeError`` where
    the data does not fill one batch, and ``PeerLostError`` where the group has lost one, before it changes the weights.
    """
    group, recorder, ledger = group or OneProcess(), recorder or NullRecorder(), ledger or DeviceTime()
    steps = data.steps_per_epoch(recipe.batch_size)
    validate_after = validation_batches(steps, recipe, len(data.train))
    losses = LossLog(state, recorder, data.train.device)
    stretch = _Stretch(ledger)
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]] | None = None
    step: Step = partial(take_step, state, recipe, group)
    if graph and group.alone and data.train.device.type == "cuda":
        step = GraphedStep(step)

    state.model.train()
    while state.epoch < recipe.epochs and not state.stopped_early:
        if group.stopping(should_stop()):
            losses.flush()
            stretch.book()
            return Ending.INTERRUPTED

        if state.batch in validate_after and not state.is_validated:
            losses.flush()
            stretch.book()
            stretch.record_speed(recorder, recipe.batch_size, state.step)
            if not validate(state, data, recipe, recorder, ledger, should_stop, group):
                return Ending.INTERRUPTED
            if state.batch == steps:  # every epoch ends in a validation
                state.epoch, state.batch = state.epoch + 1, 0
            on_validation(state)
            stretch = _Stretch(ledger)
            continue

        if state.batch == 0 or batches is None:
            batches = _batches(state, data, recipe, steps, group)
        images, labels = next(batches)

        group.begin_step(recipe.seed, state.step)
        step(images, labels, losses.add)
        state.step, state.batch = state.step + 1, state.batch + 1
        stretch.book(steps=1)

        if save_due():
            losses.flush()
            with stretch.paused():
                on_save(state)
    return Ending.COMPLETE


def take_step(
    state: TrainState,
    recipe: Recipe,
    group: Group,
    images: torch.Tensor,
    labels: torch.Tensor,
    see_loss: Callable[[torch.Tensor], object],
) -> None:
    """One optimiser step on a batch. ``see_loss``, called before the weights change, gets the loss, a scalar on the
    device, and may refuse it by an exception."""
    state.optimizer.zero_grad()
    with precision_context(recipe.precision, images.device):
        loss = F.cross_entropy(state.model(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    see_loss(group.reduce(state.model, loss.detach()))
    state.optimizer.step()


def _batches(
    state: TrainState, data: TrainingData, recipe: Recipe, steps: int, group: Group
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What is left of the epoch, of each batch the group's part: order and augmentation are functions of the place in
    the training alone."""
    epoch, first = state.epoch, state.batch
    order = epoch_order(len(data.train), recipe.seed, epoch).to(data.train.device)
    left = torch.split(order[: steps * recipe.batch_size], recipe.batch_size)[first:]
    if recipe.augmentation == "none":
        left = tuple(group.part(positions) for positions in left)
    stream = data.train.stream(
        left, recipe.augmentation, lambda number: augmentation_generator(recipe.seed, epoch, first + number)
    )
    if recipe.augmentation == "none":
        return stream
    # Its random numbers are of the whole batch: each process makes that, and takes its part.
    return ((group.part(images), group.part(labels)) for images, labels in stream)


def validate(
    state: TrainState,
    data: TrainingData,
    recipe: Recipe,
    recorder: Recorder,
    ledger: DeviceTime,
    should_stop: Callable[[], bool] = lambda: False,
    group: Group | None = None,
) -> bool:
    """Evaluates on the validation set, keeps the best weights and decides about early stopping.

    Returns whether it was done: after a yes of ``should_stop``, in any process, the state is as it was before.
    """
    started, group = time.perf_counter(), group or OneProcess()
    share = group.share(data.validation)
    try:
        part = _evaluate_or_stop(state, share, recipe, should_stop)
        result = group.total(part, len(share))
    finally:
        ledger.evaluation_seconds += time.perf_counter() - started
    if result is None:
        return False
    if not math.isfinite(result.loss):
        raise diverged("validation", result.loss, state.step)
    state.note_validation(Validation(state.step, result.loss, result.accuracy))
    losses = [validation.loss for validation in state.validations]
    state.stopped_early = should_stop_early(losses, recipe.early_stop_count)
    recorder.metrics({"val/loss": result.loss, "val/accuracy": result.accuracy}, state.step)
    return True


def _evaluate_or_stop(
    state: TrainState, images: Examples, recipe: Recipe, should_stop: Callable[[], bool]
) -> Evaluation | None:
    if not len(images):  # more processes than images
        return Evaluation(0.0, 0.0, torch.empty(0))
    try:
        return evaluate(state.model, images, recipe.precision, should_stop=should_stop)
    except EvaluationStoppedError:
        return None


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


class _Stretch:
    """Training steps between two validations. Books each on the ledger as it ends: what follows may raise."""

    def __init__(self, ledger: DeviceTime) -> None:
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

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Books, and leaves out the time spent within."""
        self.book()
        yield
        self._booked = time.perf_counter()

    def record_speed(self, recorder: Recorder, batch_size: int, step: int) -> None:
        """Images of its steps a second; nothing where a run goes on right at a validation and there was no step."""
        if self.steps:
            recorder.metrics({"train/images_per_second": self.steps * batch_size / self.seconds}, step)
