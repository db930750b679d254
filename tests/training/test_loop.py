"""The training loop: steps, validations, stops, resumption, early stopping, divergence, saves and time."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cnn_jobs.data.batches import epoch_order, generator_for
from cnn_jobs.errors import DivergedError, RecipeError
from cnn_jobs.networks.spec import ConvBlock, ConvNet
from cnn_jobs.recipe import Recipe
from cnn_jobs.training import evaluation, loop
from cnn_jobs.training.checkpoint import load_checkpoint, save_checkpoint
from cnn_jobs.training.evaluation import evaluate
from cnn_jobs.training.loop import (
    CUDA_LOSS_INTERVAL,
    DeviceTime,
    LoopResult,
    LossLog,
    should_stop_early,
    train,
    validation_batches,
)
from cnn_jobs.training.observer import Observer
from cnn_jobs.training.state import TrainState, copy_weights
from tests.helpers.training import (
    NETWORK,
    RECIPE,
    STEPS,
    Experiment,
    Hooks,
    ListRecorder,
    differences,
    snapshot,
)

SGD = replace(RECIPE, optimizer="sgd", lr=0.05, weight_decay=0.0, augmentation="none")
NO_NORM = ConvNet(blocks=(ConvBlock(filters=4, kernel=3, padding=1),), hidden=8)


class StopAfter:
    """A ``should_stop`` that is true after so many calls."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture
def plain(experiment: Experiment) -> Experiment:
    """Without BatchNorm and dropout."""
    return replace(experiment, network=NO_NORM)


# -- one training ------------------------------------------------------------------------------------------------------


def test_training_learns_an_easy_task(experiment: Experiment) -> None:
    recipe = replace(RECIPE, epochs=15, augmentation="none")
    state, data = experiment.state(recipe), experiment.data(recipe)
    before = evaluate(state.model, data.test)
    assert train(state, data, recipe) is LoopResult.COMPLETE
    after = evaluate(state.model, data.test)
    assert before.accuracy < 0.7
    assert after.accuracy > 0.9
    assert after.loss < 0.5 * before.loss
    assert sum(state.train_losses[-4:]) < 0.6 * sum(state.train_losses[:4])


@pytest.mark.parametrize(("batch_size", "epochs", "steps"), [(9, 3, 12), (36, 3, 3), (10, 2, 6), (35, 2, 2)])
def test_steps_are_full_batches_times_epochs(experiment: Experiment, batch_size: int, epochs: int, steps: int) -> None:
    recipe = replace(RECIPE, batch_size=batch_size, epochs=epochs, validations_per_epoch=1)
    state = experiment.state(recipe)
    assert experiment.train(state, recipe) is LoopResult.COMPLETE
    assert (state.step, state.epoch, state.batch) == (steps, epochs, 0)
    assert len(state.train_losses) == steps


def test_steps_and_validations_are_recorded_once_in_order(experiment: Experiment) -> None:
    state, recorder = experiment.state(), ListRecorder()
    experiment.train(state, observer=recorder)
    assert recorder.of("train/loss") == list(enumerate(state.train_losses, start=1))
    assert len(state.train_losses) == STEPS
    validated = [2, 4, 6, 8, 10, 12]
    assert recorder.of("val/loss") == [(v.step, v.loss) for v in state.validations]
    assert recorder.of("val/accuracy") == [(v.step, v.accuracy) for v in state.validations]
    assert [v.step for v in state.validations] == validated
    assert [step for step, _ in recorder.of("train/images_per_second")] == validated
    assert all(speed > 0 for _, speed in recorder.of("train/images_per_second"))
    names = {"train/loss", "val/loss", "val/accuracy", "train/images_per_second"}
    assert {name for name, _, _ in recorder.rows} == names
    assert [step for _, step, _ in recorder.rows] == sorted(step for _, step, _ in recorder.rows)


def test_validations_are_of_the_present_and_the_best_weights(experiment: Experiment) -> None:
    state, data = experiment.state(), experiment.data()
    train(state, data, RECIPE)
    last = evaluate(state.model, data.validation)
    assert (state.validations[-1].loss, state.validations[-1].accuracy) == (last.loss, last.accuracy)
    assert state.best is not None
    assert state.best.validation.loss == min(v.loss for v in state.validations)
    state.model.load_state_dict(state.best.weights)
    assert evaluate(state.model, data.validation).loss == state.best.validation.loss


def test_checkpointer_sees_the_state_after_each_validation(experiment: Experiment) -> None:
    seen: list[tuple[int, int]] = []
    state = experiment.state()
    experiment.train(state, checkpointer=Hooks(on_validation=lambda s: seen.append((s.step, len(s.validations)))))
    assert seen == [(2, 1), (4, 2), (6, 3), (8, 4), (10, 5), (12, 6)]


def test_sgd_step_equals_a_hand_written_one(plain: Experiment) -> None:
    recipe = replace(SGD, batch_size=36, epochs=1, validations_per_epoch=1)
    state, by_hand, data = plain.state(recipe), plain.state(recipe).model, plain.data(recipe)
    train(state, data, recipe)
    # One batch of all training images: their order does not matter.
    images, labels = data.train.batch(torch.arange(36))
    loss = torch.nn.functional.cross_entropy(by_hand(images), labels)
    gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
    assert state.train_losses == [pytest.approx(loss.item())]
    for trained, start, gradient in zip(state.model.parameters(), by_hand.parameters(), gradients, strict=True):
        torch.testing.assert_close(trained, start - recipe.lr * gradient)


def test_batches_depend_only_on_their_position(experiment: Experiment) -> None:
    state, data = experiment.state(), experiment.data()
    seen: list[torch.Tensor] = []
    state.model.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].clone()) if module.training else None
    )
    train(state, data, RECIPE)
    expected = []
    for epoch in range(RECIPE.epochs):
        for batch, positions in enumerate(epoch_order(36, RECIPE.seed, epoch).split(RECIPE.batch_size)):
            generator = generator_for("augmentation", RECIPE.seed, epoch, batch)
            expected.append(data.train.batch(positions, RECIPE.augmentation, generator)[0])
    assert differences(seen, expected) == []


def test_bf16_trains_near_fp32_with_float32_weights(plain: Experiment) -> None:
    recipe = replace(SGD, precision="bf16", epochs=1)
    exact, rough = plain.state(recipe), plain.state(recipe)
    train(exact, plain.data(), replace(recipe, precision="fp32"))
    train(rough, plain.data(), recipe)
    assert all(parameter.dtype == torch.float32 for parameter in rough.model.parameters())
    assert rough.train_losses == pytest.approx(exact.train_losses, abs=0.05)
    assert rough.train_losses != exact.train_losses


# -- determinism, stop and resume --------------------------------------------------------------------------------------


def trained(experiment: Experiment, recipe: Recipe = RECIPE, recorder: Observer | None = None) -> dict[str, Any]:
    state = experiment.state(recipe)
    experiment.train(state, recipe, observer=recorder)
    return snapshot(state)


def test_two_trainings_of_one_recipe_are_identical(experiment: Experiment) -> None:
    first = trained(experiment)
    torch.rand(17)  # torch's own generator between two runs does not matter
    assert differences(first, trained(experiment)) == []


def test_another_seed_gives_another_training(experiment: Experiment) -> None:
    changed = differences(trained(experiment), trained(experiment, replace(RECIPE, seed=1)))
    assert "state.train_losses[0]" in changed
    assert "state.model.linear3.weight" in changed


# Before each of 12 steps and 6 validations, and between the 4 batches of one image of each validation.
STOP_POINTS = STEPS + 6 + 6 * 3


@pytest.fixture
def _small_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(evaluation.EVALUATION_BATCH, "cpu", 1)


def resumed(experiment: Experiment, saved: dict[str, Any], recorder: Observer | None = None) -> dict[str, Any]:
    """The final state of a process that resumes from ``saved``."""
    torch.manual_seed(99)  # its generators are in another state
    state = experiment.state()
    state.load_state_dict(saved)
    assert experiment.train(state, observer=recorder) is LoopResult.COMPLETE
    return snapshot(state)


@pytest.mark.usefixtures("_small_evaluations")
@pytest.mark.parametrize("calls", range(STOP_POINTS + 1))
def test_training_stopped_anywhere_resumes_to_the_same_bits(experiment: Experiment, tmp_path: Path, calls: int) -> None:
    expected_rows, rows, spent = ListRecorder(), ListRecorder(), DeviceTime()
    expected = trained(experiment, recorder=expected_rows)

    state = experiment.state()
    result = experiment.train(state, observer=rows, spent=spent, should_stop=StopAfter(calls))
    assert result is (LoopResult.INTERRUPTED if calls < STOP_POINTS else LoopResult.COMPLETE)
    assert state.step == spent.steps == len(state.train_losses)
    assert all(module.training for module in state.model.modules())
    path = save_checkpoint(tmp_path / "last.pt", state.state_dict())

    assert differences(expected, resumed(experiment, load_checkpoint(path), rows)) == []
    for name in ("train/loss", "val/loss", "val/accuracy"):
        assert rows.of(name) == expected_rows.of(name)


@pytest.mark.usefixtures("_small_evaluations")
def test_stopped_validation_leaves_the_state_unchanged(experiment: Experiment) -> None:
    """Stopped after two steps: before the validation, and at three points inside it."""
    states, times, rows = [], [], []
    for calls in (2, 3, 4, 5):
        state, spent, recorder = experiment.state(), DeviceTime(), ListRecorder()
        experiment.train(state, observer=recorder, spent=spent, should_stop=StopAfter(calls))
        assert (state.step, state.epoch, state.batch, state.validations) == (2, 0, 2, [])
        states.append(snapshot(state))
        times.append(spent)
        rows.append(recorder)
    assert all(differences(states[0], state) == [] for state in states)
    # Its cost counts, and the speed of the two steps is recorded before it.
    assert [spent.evaluation_seconds > 0 for spent in times] == [False, True, True, True]
    assert [len(recorder.of("train/images_per_second")) for recorder in rows] == [0, 1, 1, 1]
    assert all(recorder.of("val/loss") == [] for recorder in rows)


def test_epoch_ends_with_its_validation(experiment: Experiment) -> None:
    state, places = experiment.state(), []
    while (state.epoch, state.batch) != (RECIPE.epochs, 0):
        experiment.train(state, should_stop=StopAfter(1))
        places.append((state.epoch, state.batch, state.step, state.is_validated))
    first_epoch = [(0, 1, 1, False), (0, 2, 2, False), (0, 2, 2, True)]
    first_epoch += [(0, 3, 3, False), (0, 4, 4, False), (1, 0, 4, True)]
    assert places[:6] == first_epoch
    assert [place[:2] for place in places[6:]] == [
        (epoch + more, batch) for more in (1, 2) for epoch, batch, _, _ in first_epoch
    ]


def test_training_resumed_at_a_validation_has_no_speed_for_it(experiment: Experiment) -> None:
    state, recorder, spent = experiment.state(), ListRecorder(), DeviceTime()
    experiment.train(state, should_stop=StopAfter(2))
    experiment.train(state, observer=recorder, spent=spent)
    assert [step for step, _ in recorder.of("val/loss")] == [2, 4, 6, 8, 10, 12]
    assert [step for step, _ in recorder.of("train/images_per_second")] == [4, 6, 8, 10, 12]
    assert spent.steps == STEPS - 2


def test_training_stopped_after_every_step_ends_the_same(experiment: Experiment, tmp_path: Path) -> None:
    path, attempts = tmp_path / "last.pt", 0
    result = LoopResult.INTERRUPTED
    while result is LoopResult.INTERRUPTED:
        state = experiment.state()
        if path.exists():
            state.load_state_dict(load_checkpoint(path))
        result = experiment.train(state, should_stop=StopAfter(1))
        save_checkpoint(path, state.state_dict())
        attempts += 1
    assert attempts == STEPS + 6  # a step or a validation in each
    assert differences(trained(experiment), load_checkpoint(path)) == []


def test_training_resumed_from_any_checkpoint_ends_the_same(experiment: Experiment) -> None:
    """As a killed run: saved after each step and after each validation."""
    saved: list[dict[str, Any]] = []

    def keep(state: TrainState) -> None:
        saved.append(snapshot(state))

    reference = experiment.state()
    experiment.train(reference, checkpointer=Hooks(save_due=lambda: True, on_save=keep, on_validation=keep))
    assert len(saved) == STEPS + 6
    assert differences(trained(experiment), snapshot(reference)) == []
    for number, state in enumerate(saved):
        assert differences(snapshot(reference), resumed(experiment, state)) == [], number


@pytest.mark.parametrize("forgotten", ["generators", "optimizer", "batch", "model"])
def test_missing_part_of_the_state_changes_the_result(experiment: Experiment, forgotten: str) -> None:
    """Control experiment for the tests above."""
    state = experiment.state()
    experiment.train(state, should_stop=lambda: state.step == 5)
    other = experiment.state()
    other.load_state_dict({**snapshot(state), forgotten: snapshot(experiment.state())[forgotten]})
    experiment.train(other)
    assert "state.model.linear3.weight" in differences(trained(experiment), snapshot(other))


def test_finished_training_does_not_continue(experiment: Experiment) -> None:
    state = experiment.state()
    experiment.train(state)
    before, recorder, spent = snapshot(state), ListRecorder(), DeviceTime()
    assert experiment.train(state, observer=recorder, spent=spent) is LoopResult.COMPLETE
    assert differences(before, snapshot(state)) == []
    assert (recorder.rows, spent.steps) == ([], 0)


# -- early stopping ----------------------------------------------------------------------------------------------------

LOSSES = st.lists(st.sampled_from([0.5, 1.0, 1.5]) | st.floats(0, 10), max_size=12)


@pytest.mark.parametrize(
    ("losses", "count", "stop"),
    [
        # The hand-out: among the last 4 validation losses, if the oldest is the smallest, stop.
        ([], 4, False),
        ([1.0], 4, False),
        ([1.0, 1.1, 1.2], 4, False),  # only three
        ([1.0, 1.1, 1.2, 1.3], 4, True),
        ([1.0, 1.3, 1.2, 1.1], 4, True),  # falling again, but not below the oldest
        ([1.3, 1.2, 1.1, 1.0], 4, False),
        ([1.0, 1.1, 1.2, 0.9], 4, False),  # the newest is better
        ([1.0, 0.9, 1.2, 1.3], 4, False),  # so is the second, the oldest of the next four
        ([1.0, 0.9, 1.2, 1.3, 1.1], 4, True),
        ([0.1, 1.0, 0.9, 1.2, 1.3], 4, False),  # older losses do not count
        ([1.0, 1.0, 1.0, 1.0], 4, True),  # equal is not better
        ([1.0, 1.1], 2, True),
        ([1.1, 1.0], 2, False),
        ([1.0, 1.1, 1.2, 1.3, 1.4], 0, False),
        ([], 0, False),
    ],
)
def test_early_stopping_rule_of_the_hand_out(losses: list[float], count: int, stop: bool) -> None:
    assert should_stop_early(losses, count) is stop


@given(LOSSES, st.just(0) | st.integers(2, 6))
def test_training_stops_if_no_loss_of_the_window_is_below_the_oldest(losses: list[float], count: int) -> None:
    expected = count > 0 and len(losses) >= count and not any(loss < losses[-count] for loss in losses[-count:])
    assert should_stop_early(losses, count) is expected


# A rate at which neither the weights nor, without BatchNorm's statistics, the validation loss change.
CONSTANT = replace(SGD, lr=1e-30, epochs=3, early_stop_count=4)


def test_early_stop_within_an_epoch(plain: Experiment) -> None:
    recipe = replace(CONSTANT, early_stop_count=3)
    state = plain.state(recipe)
    assert plain.train(state, recipe) is LoopResult.COMPLETE
    assert state.stopped_early
    assert (state.step, state.epoch, state.batch) == (6, 1, 2)
    assert len(state.validations) == 3
    before = snapshot(state)
    plain.train(state, recipe)
    assert differences(before, snapshot(state)) == []


def test_early_stop_survives_a_checkpoint(plain: Experiment, tmp_path: Path) -> None:
    recipe = replace(CONSTANT, early_stop_count=3)
    state, resumed, recorder = plain.state(recipe), plain.state(recipe), ListRecorder()
    plain.train(state, recipe)
    resumed.load_state_dict(load_checkpoint(save_checkpoint(tmp_path / "last.pt", state.state_dict())))
    assert plain.train(resumed, recipe, observer=recorder) is LoopResult.COMPLETE
    assert recorder.rows == []
    assert differences(snapshot(state), snapshot(resumed)) == []


def test_early_stop_at_the_end_of_an_epoch(plain: Experiment) -> None:
    state = plain.state(CONSTANT)
    plain.train(state, CONSTANT)
    assert state.stopped_early
    assert (state.step, state.epoch, state.batch) == (8, 2, 0)


def test_training_resumed_before_an_early_stop_stops_at_the_same_step(plain: Experiment) -> None:
    saved: list[dict[str, Any]] = []
    reference = plain.state(CONSTANT)
    plain.train(reference, CONSTANT, checkpointer=Hooks(on_validation=lambda state: saved.append(snapshot(state))))
    assert len(saved) == 4
    for state in saved:
        resumed = plain.state(CONSTANT)
        resumed.load_state_dict(state)
        plain.train(resumed, CONSTANT)
        assert differences(snapshot(reference), snapshot(resumed)) == []


def test_count_of_0_never_stops_early(plain: Experiment) -> None:
    recipe = replace(CONSTANT, early_stop_count=0)
    state = plain.state(recipe)
    plain.train(state, recipe)
    assert not state.stopped_early
    assert state.step == STEPS
    assert state.best is not None
    assert state.best.validation.step == 2  # the first of equal ones


# -- divergence --------------------------------------------------------------------------------------------------------


def parameters(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in state.model.named_parameters()}


def test_divergence_is_raised_before_the_weights_change(plain: Experiment) -> None:
    recipe, recorder = replace(SGD, lr=1e20), ListRecorder()
    state = plain.state(recipe)
    history: list[dict[str, torch.Tensor]] = []

    def look() -> bool:
        history.append(parameters(state))
        return False

    with pytest.raises(DivergedError, match=r"the training loss is (nan|inf) at step 2: .*smaller --lr") as caught:
        plain.train(state, recipe, observer=recorder, should_stop=look)
    assert caught.value.exit_code == 2
    assert len(history) == 2
    assert differences(history[1], parameters(state)) == []
    assert differences(history[0], history[1]) != []
    assert state.step == len(state.train_losses) == len(recorder.rows) == 1
    assert state.best is None


def test_infinite_validation_loss_is_never_the_best(plain: Experiment) -> None:
    recipe, recorder = replace(SGD, lr=1e20, validations_per_epoch=4), ListRecorder()
    state = plain.state(recipe)
    with pytest.raises(DivergedError, match=r"the validation loss is (nan|inf) at step 1: "):
        plain.train(state, recipe, observer=recorder)
    assert (state.best, state.validations) == (None, [])
    assert recorder.of("val/loss") == recorder.of("val/accuracy") == []


@pytest.mark.parametrize("network", [NETWORK, NO_NORM])
def test_best_model_is_kept_when_the_training_diverges(experiment: Experiment, network: ConvNet) -> None:
    state = replace(experiment, network=network).state(SGD)
    kept: list[dict[str, torch.Tensor]] = []

    def break_it(state: TrainState) -> None:
        kept.append(copy_weights(state.model))
        with torch.no_grad():
            next(state.model.parameters()).fill_(torch.nan)

    with pytest.raises(DivergedError, match="the training loss is nan at step 3"):
        experiment.train(state, SGD, checkpointer=Hooks(on_validation=break_it))
    assert state.best is not None
    assert state.best.validation.step == 2
    assert differences(state.best.weights, kept[0]) == []
    assert all(bool(tensor.isfinite().all()) for tensor in state.best.weights.values())


# -- invalid recipes ---------------------------------------------------------------------------------------------------


def test_batch_larger_than_the_training_images_is_refused(experiment: Experiment) -> None:
    recipe = replace(RECIPE, batch_size=37)
    state = experiment.state(recipe)
    with pytest.raises(RecipeError, match="batch_size 37 is larger than the 36 training images") as caught:
        experiment.train(state, recipe)
    assert caught.value.exit_code == 2
    assert state.step == 0


def test_more_validations_than_steps_are_refused(experiment: Experiment) -> None:
    recipe = replace(RECIPE, validations_per_epoch=5)
    with pytest.raises(RecipeError, match="validations_per_epoch 5 is more than the 4 steps") as caught:
        train(experiment.state(recipe), experiment.data(recipe), recipe)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("steps", "times", "after"),
    [
        (703, 2, {351, 703}),  # CIFAR-10: 45,000 images in batches of 64
        (703, 1, {703}),
        (4, 4, {1, 2, 3, 4}),
        (7, 3, {2, 4, 7}),
        (10, 4, {2, 5, 7, 10}),
        (1, 1, {1}),
    ],
)
def test_validations_are_spread_over_the_epoch(steps: int, times: int, after: set[int]) -> None:
    assert validation_batches(steps, Recipe(validations_per_epoch=times), steps * 64) == after


@given(st.data(), st.integers(1, 2000))
def test_validations_are_evenly_spread_and_the_last_ends_the_epoch(data: st.DataObject, steps: int) -> None:
    times = data.draw(st.integers(1, steps))
    after = sorted(validation_batches(steps, Recipe(validations_per_epoch=times), steps))
    assert len(after) == times
    assert after[-1] == steps
    gaps = [later - earlier for earlier, later in zip([0, *after], after, strict=False)]
    assert max(gaps) - min(gaps) <= 1


# -- saving ------------------------------------------------------------------------------------------------------------


def test_save_is_due_only_after_steps(experiment: Experiment) -> None:
    state, calls = experiment.state(), []
    saved: list[tuple[int, int, bool]] = []

    def due() -> bool:
        calls.append(state.step)
        return state.step % 4 in (1, 2)

    experiment.train(
        state, checkpointer=Hooks(save_due=due, on_save=lambda s: saved.append((s.step, s.batch, s.is_validated)))
    )
    assert calls == list(range(1, STEPS + 1))
    # A save comes before a validation at the same step.
    assert saved == [(1, 1, False), (2, 2, False), (5, 1, False), (6, 2, False), (9, 1, False), (10, 2, False)]


@dataclass
class Clock:
    """A clock that only ``take`` moves. Binary fractions, so that sums are exact."""

    now: float = 0.0

    def take(self, seconds: float) -> Callable[..., None]:
        def take(*args: object) -> None:
            self.now += seconds

        return take


def test_only_steps_are_training_time_and_only_validations_evaluation_time(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, recorder, spent, state = Clock(), ListRecorder(), DeviceTime(), experiment.state()
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    state.model.register_forward_hook(lambda module, *_: clock.take(2.0 if module.training else 64.0)())
    experiment.train(
        state,
        observer=recorder,
        spent=spent,
        checkpointer=Hooks(
            save_due=lambda: state.step in (1, 2, 7), on_save=clock.take(1000.0), on_validation=clock.take(1_000_000.0)
        ),
    )
    assert (spent.steps, spent.training_seconds, spent.evaluation_seconds) == (STEPS, 2.0 * STEPS, 64.0 * 6)
    speed = RECIPE.batch_size / 2.0
    assert recorder.of("train/images_per_second") == [(step, speed) for step in (2, 4, 6, 8, 10, 12)]
    assert clock.now == 2.0 * STEPS + 64.0 * 6 + 1000.0 * 3 + 1_000_000.0 * 6


def test_costs_are_complete_at_each_save(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, spent, state = Clock(), DeviceTime(), experiment.state()
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    state.model.register_forward_hook(lambda module, *_: clock.take(2.0 if module.training else 64.0)())
    costs: list[tuple[int, float]] = []

    def note(state: TrainState) -> None:
        costs.append((spent.steps, spent.device_seconds))

    experiment.train(
        state,
        spent=spent,
        checkpointer=Hooks(save_due=lambda: state.step < 4, on_save=note, on_validation=note),
        should_stop=lambda: state.step == 4,
    )
    assert costs == [(1, 2.0), (2, 4.0), (2, 68.0), (3, 70.0)]
    assert (spent.steps, spent.device_seconds) == (4, 72.0)


@pytest.fixture
def _pending_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, where up to ``CUDA_LOSS_INTERVAL`` losses are still on the device."""
    monkeypatch.setattr(loop, "LossLog", lambda state, recorder, _: LossLog(state, recorder, torch.device("cuda")))


@pytest.mark.usefixtures("_pending_losses", "_small_evaluations")
def test_pending_losses_are_read_before_a_save_a_validation_and_a_stop(experiment: Experiment) -> None:
    state, seen = experiment.state(), []

    def look(state: TrainState) -> None:
        seen.append((state.step, len(state.train_losses)))

    experiment.train(state, checkpointer=Hooks(save_due=lambda: state.step == 3, on_save=look, on_validation=look))
    assert seen == [(step, step) for step in (2, 3, 4, 6, 8, 10, 12)]
    for calls in range(STOP_POINTS):
        stopped = experiment.state()
        experiment.train(stopped, should_stop=StopAfter(calls))
        assert len(stopped.train_losses) == stopped.step


def test_wait_for_pending_losses_is_training_time(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, spent, state = Clock(), DeviceTime(), experiment.state()

    class Waiting(LossLog):
        def flush(self) -> None:
            clock.take(8.0 * len(self.pending))()
            super().flush()

    monkeypatch.setattr(loop, "LossLog", lambda state, recorder, _: Waiting(state, recorder, torch.device("cuda")))
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    seen: list[float] = []
    train(
        state,
        experiment.data(),
        replace(RECIPE, validations_per_epoch=1),
        spent=spent,
        checkpointer=Hooks(save_due=lambda: state.step == 1, on_save=lambda _: seen.append(spent.training_seconds)),
        should_stop=lambda: state.step == 3,
    )
    assert (seen, spent.training_seconds) == ([8.0], 24.0)


@pytest.mark.usefixtures("_pending_losses")
def test_state_with_a_pending_bad_loss_is_not_saved(plain: Experiment) -> None:
    recipe = replace(SGD, lr=1e20, validations_per_epoch=1)
    state, saved = plain.state(recipe), []
    with pytest.raises(DivergedError, match=r"the training loss is (nan|inf) at step 2: "):
        plain.train(
            state,
            recipe,
            checkpointer=Hooks(save_due=lambda: state.step != 2, on_save=lambda state: saved.append(state.step)),
        )
    assert state.step == 3
    assert saved == [1]


# -- observer and costs ------------------------------------------------------------------------------------------------


class Failing(ListRecorder):
    def metrics(self, values: Mapping[str, float], step: int) -> None:
        if step == 3:
            raise OSError("no space left")
        super().metrics(values, step)


def test_error_of_a_recorder_ends_the_training(experiment: Experiment) -> None:
    recorder = Failing()
    with pytest.raises(OSError, match="no space left"):
        train(experiment.state(), experiment.data(), RECIPE, observer=recorder)
    assert [step for step, _ in recorder.of("train/loss")] == [1, 2]


def test_costs_add_up_within_the_wall_time(experiment: Experiment) -> None:
    spent = DeviceTime()
    started = time.perf_counter()
    state = experiment.state()
    for stop_after in (3, 4, 100):
        experiment.train(state, spent=spent, should_stop=StopAfter(stop_after))
    wall = time.perf_counter() - started
    assert spent.steps == STEPS
    assert spent.training_seconds > 0
    assert spent.evaluation_seconds > 0
    assert spent.device_seconds == spent.training_seconds + spent.evaluation_seconds
    assert spent.device_seconds <= wall


def test_costs_include_the_steps_of_a_diverged_training(plain: Experiment) -> None:
    recipe, spent = replace(SGD, lr=1e20), DeviceTime()
    with pytest.raises(DivergedError):
        train(plain.state(recipe), plain.data(recipe), recipe, spent=spent)
    assert spent.steps == 1
    assert spent.training_seconds > 0


def test_losses_on_a_device_are_read_in_order_at_intervals(experiment: Experiment) -> None:
    state, recorder = experiment.state(), ListRecorder()
    losses = LossLog(state, recorder, torch.device("cuda"))  # only its name: no such device is used
    values = [float(value) for value in range(CUDA_LOSS_INTERVAL + 3)]
    for count, value in enumerate(values, start=1):
        losses.add(torch.tensor(value))
        assert len(state.train_losses) == (CUDA_LOSS_INTERVAL if count >= CUDA_LOSS_INTERVAL else 0)
    losses.flush()
    losses.flush()
    assert state.train_losses == values
    assert recorder.of("train/loss") == list(enumerate(values, start=1))


def test_pending_bad_loss_is_reported_with_its_own_step(experiment: Experiment) -> None:
    state, recorder = experiment.state(), ListRecorder()
    losses = LossLog(state, recorder, torch.device("cuda"))
    for value in (1.0, 2.0, float("inf"), 3.0):
        losses.add(torch.tensor(value))
    with pytest.raises(DivergedError, match="the training loss is inf at step 3"):
        losses.flush()
    assert state.train_losses == [1.0, 2.0]
    assert recorder.of("train/loss") == [(1, 1.0), (2, 2.0)]
