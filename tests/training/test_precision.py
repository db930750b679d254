"""bfloat16, and what only a CUDA device can show."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cnn_jobs.data.batches import place_on_device
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.models.spec import InputTransform
from cnn_jobs.recipe import Recipe
from cnn_jobs.tasks import TASKS
from cnn_jobs.training.device import configure_arithmetic, select_device
from cnn_jobs.training.loop import Ending, train
from cnn_jobs.training.state import TrainState, new_state
from tests.training.conftest import RECIPE, Experiment, snapshot


def test_bfloat16_computes_in_bfloat16_and_ends_near_single_precision(experiment: Experiment) -> None:
    plain = replace(RECIPE, augmentation="none")
    states = {}
    for precision in ("fp32", "bf16"):
        recipe = replace(plain, precision=precision)
        states[precision] = experiment.state(recipe)
        assert train(states[precision], experiment.data(recipe), recipe) is Ending.COMPLETE
    single, half = states["fp32"].train_losses, states["bf16"].train_losses
    assert single != half, "bf16 changed nothing: it was not used"
    # bfloat16 keeps 8 bits of a number: the first loss, before any step, differs by rounding alone.
    assert half[0] == pytest.approx(single[0], rel=0.02)
    assert {tensor.dtype for tensor in states["bf16"].model.parameters()} == {torch.float32}


def trained_on_cuda(dataset: Dataset, recipe: Recipe, steps: int | None = None) -> TrainState:
    task, placement = TASKS["task3e"], select_device("cuda")
    configure_arithmetic(1)
    data = place_on_device(dataset, recipe, InputTransform(), placement.device, placement.memory_format)
    channels, height, width = dataset.train_images.shape[1:]
    state = new_state(task.network, recipe, (channels, height, width), len(dataset.classes), placement)
    train(state, data, recipe, should_stop=lambda: state.step == steps)
    return state


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_gives_the_same_bytes_twice(tiny_dataset: Dataset) -> None:
    recipe = replace(RECIPE, batch_size=8)
    first, second = trained_on_cuda(tiny_dataset, recipe), trained_on_cuda(tiny_dataset, recipe)
    assert first.train_losses == second.train_losses
    weights, again = snapshot(first)["model"], snapshot(second)["model"]
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_stops_between_two_steps_with_every_loss_read(tiny_dataset: Dataset) -> None:
    state = trained_on_cuda(tiny_dataset, replace(RECIPE, batch_size=8), steps=3)
    assert state.step == 3 == len(state.train_losses)
