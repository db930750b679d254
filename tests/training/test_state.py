"""The state of a training: the best weights, saving and loading, the optimiser."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from cnn_jobs.models.cpu_kernels.winograd import WinogradConv2d
from cnn_jobs.recipe import Recipe
from cnn_jobs.tasks import TASKS
from cnn_jobs.training.device import Placement
from cnn_jobs.training.loop import train
from cnn_jobs.training.state import TrainState, Validation, build_optimizer, copy_weights, new_state
from tests.helpers.training import CPU, RECIPE, Experiment, differences, snapshot


def test_new_state_is_before_the_first_step(experiment: Experiment) -> None:
    state = experiment.state()
    assert (state.epoch, state.batch, state.step, state.stopped_early) == (0, 0, 0, False)
    assert (state.train_losses, state.validations, state.best) == ([], [], None)
    assert not state.is_validated
    assert state.model.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_convolutions_are_replaced_on_request() -> None:
    def state(fast: bool) -> TrainState:
        task = TASKS["task3e"]
        return new_state(task.network, RECIPE, (3, 32, 32), 10, CPU, fast_convolutions=fast)

    def kinds(model: nn.Module) -> list[type[nn.Module]]:
        return [type(layer) for layer in model.modules() if isinstance(layer, nn.Conv2d)]

    fast, plain = state(fast=True), state(fast=False)
    assert kinds(fast.model) == [nn.Conv2d, WinogradConv2d, WinogradConv2d]
    assert kinds(plain.model) == [nn.Conv2d] * 3
    assert differences(copy_weights(fast.model), copy_weights(plain.model)) == []


def test_new_state_does_not_depend_on_earlier_trainings(experiment: Experiment) -> None:
    first = snapshot(experiment.state())
    train(experiment.state(), experiment.data(), replace(RECIPE, epochs=1))
    assert differences(first, snapshot(experiment.state())) == []


def test_another_seed_gives_another_state(experiment: Experiment) -> None:
    changed = differences(snapshot(experiment.state()), snapshot(experiment.state(replace(RECIPE, seed=1))))
    assert "state.model.conv1.weight" in changed
    assert "state.generators.cpu" in changed


def test_best_validation_is_the_first_with_the_lowest_loss(experiment: Experiment) -> None:
    state = experiment.state()
    expected = {}
    for step, loss in [(1, 2.0), (2, 1.0), (3, 1.5), (4, 1.0)]:
        with torch.no_grad():
            state.model.conv1.bias.fill_(step)
        state.add_validation(Validation(step, loss, 0.5))
        expected[step] = copy_weights(state.model)
    assert [validation.step for validation in state.validations] == [1, 2, 3, 4]
    assert state.best is not None
    assert state.best.validation == Validation(2, 1.0, 0.5)
    assert differences(state.best.weights, expected[2]) == []


def test_copied_weights_do_not_follow_the_model(experiment: Experiment) -> None:
    model = experiment.state().model
    copied = copy_weights(model)
    assert set(copied) == {*dict(model.named_parameters()), *dict(model.named_buffers())}
    before = {name: tensor.clone() for name, tensor in copied.items()}
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    assert differences(copied, before) == []


def test_loaded_state_is_identical(experiment: Experiment) -> None:
    state = experiment.state()
    experiment.train(state, replace(RECIPE, epochs=1))
    saved = snapshot(state)
    other = experiment.state(replace(RECIPE, seed=9))
    torch.manual_seed(123)
    other.load_state_dict(saved)
    assert differences(saved, snapshot(other)) == []
    assert other.model.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_loaded_state_shares_no_tensor_with_its_source(experiment: Experiment) -> None:
    state = experiment.state()
    experiment.train(state, replace(RECIPE, epochs=1))
    saved = snapshot(state)
    untouched = copy.deepcopy(saved)
    resumed = experiment.state()
    resumed.load_state_dict(saved)
    assert resumed.best
    for tensor in resumed.best.weights.values():
        tensor.add_(1)
    experiment.train(resumed)
    assert differences(saved, untouched) == []


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_state_of_another_memory_format_trains_to_the_same_weights(name: str) -> None:
    """As a run that moves from a GPU to a CPU. Torch's fused Adam reads moments in memory order, without an error."""
    recipe = Recipe(optimizer=name, momentum=0.9 if name == "sgd" else 0.0, lr=0.01)
    generator, labels = torch.Generator().manual_seed(1), torch.arange(8)
    images = torch.randn(8, 3, 16, 16, generator=generator, dtype=torch.double)

    def state(layout: torch.memory_format) -> TrainState:
        placement = Placement(torch.device("cpu"), layout)
        made = new_state(TASKS["task3d-batchnorm"].network, recipe, (3, 16, 16), 10, placement)
        made.model.double()  # otherwise the formats' rounding changes the signs of small gradients
        return made

    def step(one: TrainState) -> dict[str, torch.Tensor]:
        one.model.train()
        one.optimizer.zero_grad()
        nn.functional.cross_entropy(one.model(images), labels).backward()
        one.optimizer.step()
        return {key: value.detach().clone() for key, value in one.model.named_parameters()}

    first, other = state(torch.contiguous_format), state(torch.channels_last)
    step(first)
    saved = snapshot(first)
    for group in saved["optimizer"]["param_groups"]:
        group["capturable"] = name == "adam"  # Adam refuses it on a CPU
    other.load_state_dict(saved)
    moments = {key: value for values in other.optimizer.state.values() for key, value in values.items()}
    assert len(moments) == (3 if name == "adam" else 1)
    expected, found = step(first), step(other)
    assert found["conv2.weight"].is_contiguous(memory_format=torch.channels_last)
    for key, value in expected.items():  # a step changes a weight by about lr
        torch.testing.assert_close(found[key], value, rtol=0, atol=recipe.lr / 1000, msg=key)


KEYS = [
    "model", "optimizer", "epoch", "batch", "step", "train_losses", "validations", "best", "stopped_early", "generators"
]  # fmt: skip


def without(saved: dict[str, Any], path: tuple[str | int, ...]) -> dict[str, Any]:
    part: Any = saved
    for key in path[:-1]:
        part = part[key]
    del part[path[-1]]
    return saved


def test_state_has_exactly_the_checked_keys(experiment: Experiment) -> None:
    assert list(experiment.state().state_dict()) == KEYS


@pytest.mark.parametrize(
    ("path", "message"),
    [
        *[((key,), f"the saved state lacks {key}") for key in KEYS],
        (("generators", "cpu"), "generators of the saved state lacks cpu"),
        (("generators", "cuda"), "generators of the saved state lacks cuda"),
        (("validations", 1, "loss"), "a validation of the saved state lacks loss"),
        (("best", "step"), "best of the saved state lacks step"),
        (("best", "weights"), "best of the saved state lacks weights"),
    ],
)
def test_state_without_a_key_is_refused_before_anything_changes(
    experiment: Experiment, path: tuple[str | int, ...], message: str
) -> None:
    state = experiment.state()
    experiment.train(state, replace(RECIPE, epochs=1))
    saved = without(snapshot(state), path)
    other = experiment.state(replace(RECIPE, seed=9))
    before = snapshot(other)
    with pytest.raises(ValueError, match=f"^{message}$"):
        other.load_state_dict(saved)
    assert differences(before, snapshot(other)) == []


@pytest.mark.parametrize(("saved", "here"), [(0, 0), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2)])
def test_cuda_generators_are_set_for_existing_devices(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, saved: int, here: int
) -> None:
    content = snapshot(experiment.state(replace(RECIPE, seed=3)))
    content["generators"]["cuda"] = [torch.full((16,), device, dtype=torch.uint8) for device in range(saved)]
    state = experiment.state()
    restored: list[tuple[int, list[int]]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda new, device: restored.append((device, new.tolist())))
    state.load_state_dict(content)
    assert restored == [(device, [device] * 16) for device in range(min(saved, here))]
    assert torch.equal(torch.get_rng_state(), content["generators"]["cpu"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
@pytest.mark.parametrize("more", [[], [torch.zeros(16, dtype=torch.uint8)] * 9])
def test_cuda_generator_is_restored(experiment: Experiment, more: list[torch.Tensor]) -> None:
    state = experiment.state()
    saved = snapshot(state)
    saved["generators"]["cuda"] += more  # a machine with more devices
    drawn = torch.rand(9, device="cuda")
    state.load_state_dict(saved)
    assert torch.equal(torch.rand(9, device="cuda"), drawn)


def two_steps(optimizer: torch.optim.Optimizer, layer: nn.Linear) -> torch.Tensor:
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    return layer.weight.detach().clone()


def layer() -> nn.Linear:
    result = nn.Linear(2, 1)
    with torch.no_grad():
        result.weight.fill_(0.5)
    return result


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        # Two steps on a gradient of 1 from a weight of 0.5.
        (Recipe(lr=0.1), 0.3),
        (Recipe(lr=0.1, momentum=0.5), 0.5 - 0.1 * 1 - 0.1 * 1.5),
        (Recipe(lr=0.1, weight_decay=1.0), (0.5 - 0.1 * 1.5) - 0.1 * (1 + 0.35)),
        (Recipe(optimizer="adam", lr=0.1), 0.3),  # with a constant gradient, a step of Adam is lr
    ],
)
def test_optimiser_follows_the_recipe(recipe: Recipe, expected: float) -> None:
    trained = layer()
    weight = two_steps(build_optimizer(trained, recipe), trained)
    torch.testing.assert_close(weight, torch.full((1, 2), expected))


def test_adam_adds_weight_decay_to_the_gradient() -> None:
    recipe = Recipe(optimizer="adam", lr=0.1, weight_decay=0.3)
    ours, theirs = layer(), layer()
    reference = torch.optim.Adam(theirs.parameters(), lr=0.1, weight_decay=0.3, betas=(0.9, 0.999), eps=1e-8)
    torch.testing.assert_close(two_steps(build_optimizer(ours, recipe), ours), two_steps(reference, theirs))
