"""The training loop: one pass from top to bottom that can stop and resume between any two steps."""

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

from cnn_jobs.data.batches import Examples, TrainingData, epoch_order, generator_for
from cnn_jobs.errors import DivergedError, RecipeError
from cnn_jobs.recipe import Recipe
from cnn_jobs.training.checkpoint import Checkpointer
from cnn_jobs.training.cuda_graph import GraphedStep, Step
from cnn_jobs.training.evaluation import Evaluation, EvaluationStoppedError, evaluate, precision_context
from cnn_jobs.training.observer import Observer
from cnn_jobs.training.process_group import ProcessGroup
from cnn_jobs.training.state import TrainState, Validation

# On CUDA losses are read back only every so many steps: each read waits for the device.
CUDA_LOSS_INTERVAL = 20


class LoopResult(Enum):
    """Why the loop returned."""

    COMPLETE = "complete"
    INTERRUPTED = "interrupted"


@dataclass
class DeviceTime:
    """What an attempt spent: optimiser steps, and seconds of the device in training, evaluation and the frozen
    backbone's pass over the images.

    ``repeated_seconds``: the part of that pass that only restored what an earlier attempt had computed;
    ``found_seconds``: what earlier attempts had spent on features that this one found on disk. In a distributed
    training the seconds are those of rank 0, and ``device_seconds`` counts them for all ``devices``.
    """

    steps: int = 0
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    feature_seconds: float = 0.0
    repeated_seconds: float = 0.0
    found_seconds: float = 0.0
    devices: int = 1

    @property
    def device_seconds(self) -> float:
        """Seconds of all devices together."""
        return self.devices * (self.training_seconds + self.evaluation_seconds + self.feature_seconds)


def train(
    state: TrainState,
    data: TrainingData,
    recipe: Recipe,
    *,
    group: ProcessGroup | None = None,
    observer: Observer | None = None,
    checkpointer: Checkpointer | None = None,
    spent: DeviceTime | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    graph: bool = True,
) -> LoopResult:
    """Trains from the step of ``state`` to the end of the recipe, or until ``should_stop``.

    ``should_stop`` is asked before every step and validation, and between the batches of a validation, which is then
    repeated on resume. The ``checkpointer`` sees all that is recorded so far, and its time does not count as training
    time. In a ``group`` of several processes each has its share of every batch; they do all steps together and stop
    together. On CUDA a single process records its step as a ``graph``, which is faster and changes no bit. Raises
    ``DivergedError`` at a loss that is not finite (on a CPU before it changes the weights), ``RecipeError`` where the
    data does not fill one batch, ``PeerLostError`` where the group loses a process (before the weights change).
    """
    group, observer, checkpointer = group or ProcessGroup(), observer or Observer(), checkpointer or Checkpointer()
    spent = spent or DeviceTime()
    steps = data.steps_per_epoch(recipe.batch_size)
    validate_after = validation_batches(steps, recipe, len(data.train))
    losses = LossLog(state, observer, data.train.device)
    timer = _StepTimer(spent)
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]] | None = None
    step: Step = partial(take_step, state, recipe, group)
    if graph and group.size == 1 and data.train.device.type == "cuda":
        step = GraphedStep(step)

    state.model.train()
    while state.epoch < recipe.epochs and not state.stopped_early:
        if group.agree_to_stop(should_stop()):
            losses.flush()
            timer.add_elapsed()
            return LoopResult.INTERRUPTED

        if state.batch in validate_after and not state.is_validated:
            losses.flush()
            timer.add_elapsed()
            if timer.steps:  # none where a run resumes right at a validation
                observer.speed_measured(state.step, timer.steps * recipe.batch_size / timer.seconds)
            if not validate(state, data, recipe, observer, spent, should_stop, group):
                return LoopResult.INTERRUPTED
            if state.batch == steps:  # every epoch ends in a validation
                state.epoch, state.batch = state.epoch + 1, 0
            checkpointer.after_validation(state)
            timer = _StepTimer(spent)
            continue

        if state.batch == 0 or batches is None:
            batches = _batches(state, data, recipe, steps, group)
        images, labels = next(batches)

        group.begin_step(recipe.seed, state.step)
        step(images, labels, losses.add)
        state.step, state.batch = state.step + 1, state.batch + 1
        timer.add_elapsed(steps=1)

        if checkpointer.due():
            losses.flush()
            with timer.paused():
                checkpointer.save(state)
    return LoopResult.COMPLETE


def take_step(
    state: TrainState,
    recipe: Recipe,
    group: ProcessGroup,
    images: torch.Tensor,
    labels: torch.Tensor,
    see_loss: Callable[[torch.Tensor], object],
) -> None:
    """One optimiser step on a batch. ``see_loss`` gets the loss, a scalar on the device, before the weights change, and
    may refuse it by an exception."""
    state.optimizer.zero_grad()
    with precision_context(recipe.precision, images.device):
        loss = F.cross_entropy(state.model(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    see_loss(group.reduce(state.model, loss.detach()))
    state.optimizer.step()


def _batches(
    state: TrainState, data: TrainingData, recipe: Recipe, steps: int, group: ProcessGroup
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """This process' share of the batches left in the epoch. Order and augmentation depend only on the position in the
    training."""
    epoch, first = state.epoch, state.batch
    order = epoch_order(len(data.train), recipe.seed, epoch).to(data.train.device)
    left = torch.split(order[: steps * recipe.batch_size], recipe.batch_size)[first:]
    if recipe.augmentation == "none":
        left = tuple(group.part(positions) for positions in left)
    stream = data.train.stream(
        left, recipe.augmentation, lambda number: generator_for("augmentation", recipe.seed, epoch, first + number)
    )
    if recipe.augmentation == "none":
        return stream
    # The random numbers belong to the whole batch: each process augments all of it, then takes its share.
    return ((group.part(images), group.part(labels)) for images, labels in stream)


# -- validation ------------------------------------------------------------------------------------------------------


def validate(
    state: TrainState,
    data: TrainingData,
    recipe: Recipe,
    observer: Observer,
    spent: DeviceTime,
    should_stop: Callable[[], bool],
    group: ProcessGroup,
) -> bool:
    """Evaluates on the validation set, keeps the best weights and decides about early stopping.

    Returns ``False``, with the state unchanged, where ``should_stop`` was true in any process.
    """
    started = time.perf_counter()
    share = group.share(data.validation)
    try:
        result = group.total(_evaluate_share(state, share, recipe, should_stop), len(share))
    finally:
        spent.evaluation_seconds += time.perf_counter() - started
    if result is None:
        return False
    if not math.isfinite(result.loss):
        raise diverged("validation", result.loss, state.step)
    state.add_validation(Validation(state.step, result.loss, result.accuracy))
    state.stopped_early = should_stop_early([each.loss for each in state.validations], recipe.early_stop_count)
    observer.validated(state.step, result.loss, result.accuracy)
    return True


def _evaluate_share(
    state: TrainState, images: Examples, recipe: Recipe, should_stop: Callable[[], bool]
) -> Evaluation | None:
    """``None`` where ``should_stop`` was true."""
    if not len(images):  # more processes than images
        return Evaluation(0.0, 0.0, torch.empty(0))
    try:
        return evaluate(state.model, images, recipe.precision, should_stop=should_stop)
    except EvaluationStoppedError:
        return None


def validation_batches(steps: int, recipe: Recipe, images: int) -> frozenset[int]:
    """After how many batches of an epoch to validate: evenly spaced, the last at the epoch's end.

    Raises ``RecipeError`` where the epoch has fewer steps than validations.
    """
    if steps < 1:
        raise RecipeError(
            f"batch_size {recipe.batch_size} is larger than the {images} training images; choose a smaller one"
        )
    times = recipe.validations_per_epoch
    if times > steps:
        raise RecipeError(f"validations_per_epoch {times} is more than the {steps} steps of an epoch; lower it")
    return frozenset(steps * (number + 1) // times for number in range(times))


def should_stop_early(validation_losses: Sequence[float], count: int) -> bool:
    """Whether the oldest of the last ``count`` validation losses is the smallest of them; 0 = never.

    The rule of the course's hand-out. ``False`` while there are fewer than ``count`` losses.
    """
    if not count or len(validation_losses) < count:
        return False
    recent = validation_losses[-count:]
    return recent[0] == min(recent)


# -- losses and time -------------------------------------------------------------------------------------------------


@dataclass
class LossLog:
    """Reads losses from the device, in order, and refuses one that is not finite."""

    state: TrainState
    observer: Observer
    device: torch.device
    pending: list[torch.Tensor] = field(default_factory=list)

    def add(self, loss: torch.Tensor) -> None:
        """Takes the loss of the present step, a scalar on the device."""
        self.pending.append(loss)
        if self.device.type == "cpu" or len(self.pending) == CUDA_LOSS_INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Records every pending loss. Raises ``DivergedError`` at the first that is not finite."""
        if not self.pending:
            return
        values = torch.stack(self.pending).float().tolist()
        self.pending.clear()
        for value in values:
            step = len(self.state.train_losses) + 1
            if not math.isfinite(value):
                raise diverged("training", value, step)
            self.state.train_losses.append(value)
            self.observer.step_finished(step, value)


def diverged(kind: str, loss: float, step: int) -> DivergedError:
    """The error for a loss that is not finite; ``kind``: training or validation."""
    return DivergedError(f"the {kind} loss is {loss} at step {step}: the training diverged; try a smaller --lr")


class _StepTimer:
    """Times the steps between two validations, and adds each to ``spent`` when it ends: what follows may raise."""

    def __init__(self, spent: DeviceTime) -> None:
        self.steps = 0
        self.seconds = 0.0
        self._spent = spent
        self._mark = time.perf_counter()

    def add_elapsed(self, steps: int = 0) -> None:
        """Adds ``steps`` and the wall time since the last call."""
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        self.steps, self.seconds = self.steps + steps, self.seconds + seconds
        self._spent.steps += steps
        self._spent.training_seconds += seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time spent within."""
        self.add_elapsed()
        yield
        self._mark = time.perf_counter()
