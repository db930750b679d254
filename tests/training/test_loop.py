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
from cnn_jobs.training.loop import CUDA_LOSS_INTERVAL, DeviceTime, LoopResult, LossLog, train, validation_batches
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
    """Says yes from question number ``questions`` + 1 of this attempt on."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


# -- one training ------------------------------------------------------------------------------------------------


def test_it_learns_what_is_easy_to_learn(experiment: Experiment) -> None:
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
def test_steps_are_whole_batches_times_epochs(experiment: Experiment, batch_size: int, epochs: int, steps: int) -> None:
    recipe = replace(RECIPE, batch_size=batch_size, epochs=epochs, validations_per_epoch=1)
    state = experiment.state(recipe)
    assert train(state, experiment.data(recipe), recipe) is LoopResult.COMPLETE
    assert (state.step, state.epoch, state.batch) == (steps, epochs, 0)
    assert len(state.train_losses) == steps


def test_every_step_and_every_validation_is_recorded_once_and_in_order(experiment: Experiment) -> None:
    state, recorder = experiment.state(), ListRecorder()
    train(state, experiment.data(), RECIPE, observer=recorder)
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


def test_the_speed_is_that_of_the_steps_alone(experiment: Experiment) -> None:
    recorder, ledger = ListRecorder(), DeviceTime()
    state, data = experiment.state(), experiment.data()
    train(
        state,
        data,
        RECIPE,
        observer=recorder,
        spent=ledger,
        checkpointer=Hooks(on_validation=lambda state: time.sleep(0.05)),
    )
    seconds = [2 * RECIPE.batch_size / speed for _, speed in recorder.of("train/images_per_second")]
    assert sum(seconds) == pytest.approx(ledger.training_seconds)


def test_the_last_validation_is_of_the_weights_at_the_end(experiment: Experiment) -> None:
    state, data = experiment.state(), experiment.data()
    train(state, data, RECIPE)
    result = evaluate(state.model, data.validation)
    assert (state.validations[-1].loss, state.validations[-1].accuracy) == (result.loss, result.accuracy)


def test_the_best_weights_have_the_lowest_validation_loss(experiment: Experiment) -> None:
    state, data = experiment.state(), experiment.data()
    train(state, data, RECIPE)
    assert state.best is not None
    assert state.best.validation.loss == min(v.loss for v in state.validations)
    state.model.load_state_dict(state.best.weights)
    assert evaluate(state.model, data.validation).loss == state.best.validation.loss


def test_on_validation_sees_the_state_after_its_validation(experiment: Experiment) -> None:
    seen: list[tuple[int, int]] = []
    state = experiment.state()
    train(
        state,
        experiment.data(),
        RECIPE,
        checkpointer=Hooks(on_validation=lambda s: seen.append((s.step, len(s.validations)))),
    )
    assert seen == [(2, 1), (4, 2), (6, 3), (8, 4), (10, 5), (12, 6)]


def test_one_step_of_sgd_is_what_a_hand_written_one_does(experiment: Experiment) -> None:
    recipe = replace(SGD, batch_size=36, epochs=1, validations_per_epoch=1)
    plain = replace(experiment, network=NO_NORM)
    state, by_hand, data = plain.state(recipe), plain.state(recipe).model, plain.data(recipe)
    train(state, data, recipe)
    # One batch holds every training image, so that their order does not matter.
    images, labels = data.train.batch(torch.arange(36))
    loss = torch.nn.functional.cross_entropy(by_hand(images), labels)
    gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
    assert state.train_losses == [pytest.approx(loss.item())]
    for trained, start, gradient in zip(state.model.parameters(), by_hand.parameters(), gradients, strict=True):
        torch.testing.assert_close(trained, start - recipe.lr * gradient)


def test_the_model_sees_each_batch_as_a_function_of_its_place(experiment: Experiment) -> None:
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


def test_bf16_trains_near_fp32_and_keeps_its_weights_in_float32(experiment: Experiment) -> None:
    recipe = replace(SGD, precision="bf16", epochs=1)
    plain = replace(experiment, network=NO_NORM)
    exact, rough = plain.state(recipe), plain.state(recipe)
    train(exact, plain.data(), replace(recipe, precision="fp32"))
    train(rough, plain.data(), recipe)
    assert all(parameter.dtype == torch.float32 for parameter in rough.model.parameters())
    assert rough.train_losses == pytest.approx(exact.train_losses, abs=0.05)
    assert rough.train_losses != exact.train_losses


# -- determinism, stop and continue ------------------------------------------------------------------------------


def trained(experiment: Experiment, recipe: Recipe = RECIPE, recorder: Observer | None = None) -> dict[str, Any]:
    state = experiment.state(recipe)
    train(state, experiment.data(recipe), recipe, observer=recorder)
    return snapshot(state)


def test_two_trainings_of_one_recipe_are_the_same_in_every_bit(experiment: Experiment) -> None:
    first = trained(experiment)
    torch.rand(17)  # where torch's own generator stands between two runs does not matter
    assert differences(first, trained(experiment)) == []


def test_another_seed_is_another_training(experiment: Experiment) -> None:
    changed = differences(trained(experiment), trained(experiment, replace(RECIPE, seed=1)))
    assert "state.train_losses[0]" in changed
    assert "state.model.linear3.weight" in changed


# Asked before each of 12 steps and 6 validations, and between the 4 batches of one picture of each validation.
QUESTIONS = STEPS + 6 + 6 * 3


@pytest.fixture
def _small_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(evaluation.EVALUATION_BATCH, "cpu", 1)


def go_on(experiment: Experiment, saved: dict[str, Any], recorder: Observer | None = None) -> dict[str, Any]:
    """The end that another process reaches from ``saved``."""
    torch.manual_seed(99)  # its generators are elsewhere
    torch.rand(5)
    state = experiment.state()
    state.load_state_dict(saved)
    assert train(state, experiment.data(), RECIPE, observer=recorder) is LoopResult.COMPLETE
    return snapshot(state)


@pytest.mark.usefixtures("_small_evaluations")
@pytest.mark.parametrize("questions", range(QUESTIONS + 1))
def test_stopped_anywhere_and_continued_it_ends_the_same_in_every_bit(
    experiment: Experiment, tmp_path: Path, questions: int
) -> None:
    straight_rows, rows, ledger = ListRecorder(), ListRecorder(), DeviceTime()
    straight = trained(experiment, recorder=straight_rows)

    state = experiment.state()
    ending = train(state, experiment.data(), RECIPE, observer=rows, spent=ledger, should_stop=StopAfter(questions))
    assert ending is (LoopResult.INTERRUPTED if questions < QUESTIONS else LoopResult.COMPLETE)
    assert state.step == ledger.steps == len(state.train_losses)
    assert all(module.training for module in state.model.modules())
    path = save_checkpoint(tmp_path / "last.pt", state.state_dict())

    assert differences(straight, go_on(experiment, load_checkpoint(path), rows)) == []
    for name in ("train/loss", "val/loss", "val/accuracy"):
        assert rows.of(name) == straight_rows.of(name)


@pytest.mark.usefixtures("_small_evaluations")
def test_a_validation_that_was_stopped_has_left_no_trace(experiment: Experiment) -> None:
    """Two steps, and then the question before a validation and the three within it."""
    states, ledgers, rows = [], [], []
    for questions in (2, 3, 4, 5):
        state, ledger, recorder = experiment.state(), DeviceTime(), ListRecorder()
        train(state, experiment.data(), RECIPE, observer=recorder, spent=ledger, should_stop=StopAfter(questions))
        assert (state.step, state.epoch, state.batch, state.validations) == (2, 0, 2, [])
        states.append(snapshot(state))
        ledgers.append(ledger)
        rows.append(recorder)
    assert all(differences(states[0], state) == [] for state in states)
    # What it cost is not forgotten, though, and the speed of the two steps is known before it.
    assert [ledger.evaluation_seconds > 0 for ledger in ledgers] == [False, True, True, True]
    assert [len(recorder.of("train/images_per_second")) for recorder in rows] == [0, 1, 1, 1]
    assert all(recorder.of("val/loss") == [] for recorder in rows)


def test_at_the_end_of_an_epoch_its_validation_comes_before_the_next_epoch(experiment: Experiment) -> None:
    state, places = experiment.state(), []
    while (state.epoch, state.batch) != (RECIPE.epochs, 0):
        train(state, experiment.data(), RECIPE, should_stop=StopAfter(1))
        places.append((state.epoch, state.batch, state.step, state.is_validated))
    first_epoch = [(0, 1, 1, False), (0, 2, 2, False), (0, 2, 2, True)]
    first_epoch += [(0, 3, 3, False), (0, 4, 4, False), (1, 0, 4, True)]
    assert places[:6] == first_epoch
    assert [place[:2] for place in places[6:]] == [
        (epoch + more, batch) for more in (1, 2) for epoch, batch, _, _ in first_epoch
    ]


def test_a_run_that_goes_on_at_a_validation_has_no_speed_before_the_next(experiment: Experiment) -> None:
    state, recorder, ledger = experiment.state(), ListRecorder(), DeviceTime()
    train(state, experiment.data(), RECIPE, should_stop=StopAfter(2))
    train(state, experiment.data(), RECIPE, observer=recorder, spent=ledger)
    assert [step for step, _ in recorder.of("val/loss")] == [2, 4, 6, 8, 10, 12]
    assert [step for step, _ in recorder.of("train/images_per_second")] == [4, 6, 8, 10, 12]
    assert ledger.steps == STEPS - 2


def test_stopped_again_and_again_it_ends_the_same(experiment: Experiment, tmp_path: Path) -> None:
    path, attempts = tmp_path / "last.pt", 0
    ending = LoopResult.INTERRUPTED
    while ending is LoopResult.INTERRUPTED:
        state = experiment.state()
        if path.exists():
            state.load_state_dict(load_checkpoint(path))
        ending = train(state, experiment.data(), RECIPE, should_stop=StopAfter(1))
        save_checkpoint(path, state.state_dict())
        attempts += 1
    assert attempts == STEPS + 6  # a step or a validation in each
    assert differences(trained(experiment), load_checkpoint(path)) == []


def test_whatever_it_saved_last_it_ends_the_same(experiment: Experiment) -> None:
    """Of a run that was killed: saved after each step and after each validation."""
    saved: list[dict[str, Any]] = []

    def keep(state: TrainState) -> None:
        saved.append(snapshot(state))

    straight = experiment.state()
    train(
        straight,
        experiment.data(),
        RECIPE,
        checkpointer=Hooks(save_due=lambda: True, on_save=keep, on_validation=keep),
    )
    assert len(saved) == STEPS + 6
    assert differences(trained(experiment), snapshot(straight)) == []
    for number, state in enumerate(saved):
        assert differences(snapshot(straight), go_on(experiment, state)) == [], number


@pytest.mark.parametrize("forgotten", ["generators", "optimizer", "batch", "model"])
def test_a_part_of_the_state_that_is_forgotten_changes_the_end(experiment: Experiment, forgotten: str) -> None:
    """What the tests above would see if the state did not hold it."""
    state = experiment.state()
    train(state, experiment.data(), RECIPE, should_stop=lambda: state.step == 5)
    resumed = experiment.state()
    resumed.load_state_dict({**snapshot(state), forgotten: snapshot(experiment.state())[forgotten]})
    train(resumed, experiment.data(), RECIPE)
    assert "state.model.linear3.weight" in differences(trained(experiment), snapshot(resumed))


def test_a_finished_training_is_not_trained_further(experiment: Experiment) -> None:
    state = experiment.state()
    train(state, experiment.data(), RECIPE)
    before, recorder, ledger = snapshot(state), ListRecorder(), DeviceTime()
    assert train(state, experiment.data(), RECIPE, observer=recorder, spent=ledger) is LoopResult.COMPLETE
    assert differences(before, snapshot(state)) == []
    assert (recorder.rows, ledger.steps) == ([], 0)


# -- early stopping ----------------------------------------------------------------------------------------------

# So small that the weights do not move, nor does the validation loss: without BatchNorm, whose statistics do.
STANDING = replace(SGD, lr=1e-30, epochs=3, early_stop_count=4)


def test_early_stopping_stops_in_the_middle_of_an_epoch_where_it_must(experiment: Experiment) -> None:
    plain = replace(experiment, network=NO_NORM)
    recipe = replace(STANDING, early_stop_count=3)
    state = plain.state(recipe)
    assert train(state, plain.data(recipe), recipe) is LoopResult.COMPLETE
    assert state.stopped_early
    assert (state.step, state.epoch, state.batch) == (6, 1, 2)
    assert len(state.validations) == 3
    before = snapshot(state)
    train(state, plain.data(recipe), recipe)
    assert differences(before, snapshot(state)) == []


def test_a_training_that_stopped_early_stays_stopped_when_it_is_loaded(experiment: Experiment, tmp_path: Path) -> None:
    plain = replace(experiment, network=NO_NORM)
    recipe = replace(STANDING, early_stop_count=3)
    state, resumed, recorder = plain.state(recipe), plain.state(recipe), ListRecorder()
    train(state, plain.data(recipe), recipe)
    resumed.load_state_dict(load_checkpoint(save_checkpoint(tmp_path / "last.pt", state.state_dict())))
    assert train(resumed, plain.data(recipe), recipe, observer=recorder) is LoopResult.COMPLETE
    assert recorder.rows == []
    assert differences(snapshot(state), snapshot(resumed)) == []


def test_early_stopping_at_the_end_of_an_epoch_closes_the_epoch(experiment: Experiment) -> None:
    plain = replace(experiment, network=NO_NORM)
    state = plain.state(STANDING)
    train(state, plain.data(STANDING), STANDING)
    assert state.stopped_early
    assert (state.step, state.epoch, state.batch) == (8, 2, 0)


def test_whatever_was_saved_before_an_early_stop_it_stops_at_the_same_place(experiment: Experiment) -> None:
    plain = replace(experiment, network=NO_NORM)
    saved: list[dict[str, Any]] = []
    straight = plain.state(STANDING)
    train(
        straight,
        plain.data(STANDING),
        STANDING,
        checkpointer=Hooks(on_validation=lambda state: saved.append(snapshot(state))),
    )
    assert len(saved) == 4
    for state in saved:
        resumed = plain.state(STANDING)
        resumed.load_state_dict(state)
        train(resumed, plain.data(STANDING), STANDING)
        assert differences(snapshot(straight), snapshot(resumed)) == []


def test_with_a_count_of_0_it_never_stops_early(experiment: Experiment) -> None:
    plain, recipe = replace(experiment, network=NO_NORM), replace(STANDING, early_stop_count=0)
    state = plain.state(recipe)
    train(state, plain.data(recipe), recipe)
    assert not state.stopped_early
    assert state.step == STEPS
    assert state.best is not None
    assert state.best.validation.step == 2  # the first of equal ones


# -- divergence --------------------------------------------------------------------------------------------------


def parameters(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in state.model.named_parameters()}


def test_a_training_that_diverges_ends_with_exit_2_before_the_bad_step(experiment: Experiment) -> None:
    plain, recipe, recorder = replace(experiment, network=NO_NORM), replace(SGD, lr=1e20), ListRecorder()
    state = plain.state(recipe)
    history: list[dict[str, torch.Tensor]] = []

    def look() -> bool:
        history.append(parameters(state))
        return False

    with pytest.raises(DivergedError, match=r"the training loss is (nan|inf) at step 2: .*smaller --lr") as caught:
        train(state, plain.data(recipe), recipe, observer=recorder, should_stop=look)
    assert caught.value.exit_code == 2
    assert len(history) == 2
    assert differences(history[1], parameters(state)) == []
    assert differences(history[0], history[1]) != []
    assert state.step == len(state.train_losses) == len(recorder.rows) == 1
    assert state.best is None


def test_a_validation_loss_that_is_not_finite_is_never_the_best(experiment: Experiment) -> None:
    plain = replace(experiment, network=NO_NORM)
    recipe, recorder = replace(SGD, lr=1e20, validations_per_epoch=4), ListRecorder()
    state = plain.state(recipe)
    with pytest.raises(DivergedError, match=r"the validation loss is (nan|inf) at step 1: "):
        train(state, plain.data(recipe), recipe, observer=recorder)
    assert (state.best, state.validations) == (None, [])
    assert recorder.of("val/loss") == recorder.of("val/accuracy") == []


@pytest.mark.parametrize("network", [NETWORK, NO_NORM])
def test_the_best_model_before_a_divergence_stays_the_best(experiment: Experiment, network: ConvNet) -> None:
    state = replace(experiment, network=network).state(SGD)
    kept: list[dict[str, torch.Tensor]] = []

    def break_it(state: TrainState) -> None:
        kept.append(copy_weights(state.model))
        with torch.no_grad():
            next(state.model.parameters()).fill_(torch.nan)

    with pytest.raises(DivergedError, match="the training loss is nan at step 3"):
        train(state, experiment.data(SGD), SGD, checkpointer=Hooks(on_validation=break_it))
    assert state.best is not None
    assert state.best.validation.step == 2
    assert differences(state.best.weights, kept[0]) == []
    assert all(bool(tensor.isfinite().all()) for tensor in state.best.weights.values())


# -- what cannot be trained --------------------------------------------------------------------------------------


def test_a_batch_larger_than_the_training_images_is_refused(experiment: Experiment) -> None:
    recipe = replace(RECIPE, batch_size=37)
    state = experiment.state(recipe)
    with pytest.raises(RecipeError, match="batch_size 37 is larger than the 36 training images") as caught:
        train(state, experiment.data(recipe), recipe)
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
def test_validations_are_as_many_as_asked_and_the_last_ends_the_epoch(data: st.DataObject, steps: int) -> None:
    times = data.draw(st.integers(1, steps))
    after = sorted(validation_batches(steps, Recipe(validations_per_epoch=times), steps))
    assert len(after) == times
    assert after[-1] == steps
    gaps = [later - earlier for earlier, later in zip([0, *after], after, strict=False)]
    assert max(gaps) - min(gaps) <= 1


# -- saving ------------------------------------------------------------------------------------------------------


def test_it_is_asked_after_every_step_whether_to_save(experiment: Experiment) -> None:
    state, asked = experiment.state(), []
    saved: list[tuple[int, int, bool]] = []

    def due() -> bool:
        asked.append(state.step)
        return state.step % 4 in (1, 2)

    train(
        state,
        experiment.data(),
        RECIPE,
        checkpointer=Hooks(save_due=due, on_save=lambda s: saved.append((s.step, s.batch, s.is_validated))),
    )
    assert asked == list(range(1, STEPS + 1))
    # Where a validation is due it is still to come.
    assert saved == [(1, 1, False), (2, 2, False), (5, 1, False), (6, 2, False), (9, 1, False), (10, 2, False)]


@dataclass
class Clock:
    """Stands still but where a test moves it. Binary fractions, so that sums are exact."""

    now: float = 0.0

    def take(self, seconds: float) -> Callable[..., None]:
        def use(*anything: object) -> None:
            self.now += seconds

        return use


def test_only_steps_count_as_training_and_only_validations_as_evaluation(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, recorder, ledger, state = Clock(), ListRecorder(), DeviceTime(), experiment.state()
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    state.model.register_forward_hook(lambda module, *_: clock.take(2.0 if module.training else 64.0)())
    train(
        state,
        experiment.data(),
        RECIPE,
        observer=recorder,
        spent=ledger,
        checkpointer=Hooks(
            save_due=lambda: state.step in (1, 2, 7), on_save=clock.take(1000.0), on_validation=clock.take(1_000_000.0)
        ),
    )
    assert (ledger.steps, ledger.training_seconds, ledger.evaluation_seconds) == (STEPS, 2.0 * STEPS, 64.0 * 6)
    speed = RECIPE.batch_size / 2.0
    assert recorder.of("train/images_per_second") == [(step, speed) for step in (2, 4, 6, 8, 10, 12)]
    assert clock.now == 2.0 * STEPS + 64.0 * 6 + 1000.0 * 3 + 1_000_000.0 * 6


def test_what_is_saved_knows_what_it_cost(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ledger, state = Clock(), DeviceTime(), experiment.state()
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    state.model.register_forward_hook(lambda module, *_: clock.take(2.0 if module.training else 64.0)())
    costs: list[tuple[int, float]] = []

    def note(state: TrainState) -> None:
        costs.append((ledger.steps, ledger.device_seconds))

    train(
        state,
        experiment.data(),
        RECIPE,
        spent=ledger,
        checkpointer=Hooks(save_due=lambda: state.step < 4, on_save=note, on_validation=note),
        should_stop=lambda: state.step == 4,
    )
    assert costs == [(1, 2.0), (2, 4.0), (2, 68.0), (3, 70.0)]
    assert (ledger.steps, ledger.device_seconds) == (4, 72.0)


@pytest.fixture
def _losses_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, where up to ``CUDA_LOSS_INTERVAL`` losses are still on the device."""
    monkeypatch.setattr(loop, "LossLog", lambda state, recorder, _: LossLog(state, recorder, torch.device("cuda")))


@pytest.mark.usefixtures("_losses_wait", "_small_evaluations")
def test_losses_that_wait_are_read_before_a_save_a_validation_and_a_stop(experiment: Experiment) -> None:
    state, seen = experiment.state(), []

    def look(state: TrainState) -> None:
        seen.append((state.step, len(state.train_losses)))

    train(
        state,
        experiment.data(),
        RECIPE,
        checkpointer=Hooks(save_due=lambda: state.step == 3, on_save=look, on_validation=look),
    )
    assert seen == [(step, step) for step in (2, 3, 4, 6, 8, 10, 12)]
    for questions in range(QUESTIONS):
        stopped = experiment.state()
        train(stopped, experiment.data(), RECIPE, should_stop=StopAfter(questions))
        assert len(stopped.train_losses) == stopped.step


def test_waiting_for_the_device_before_a_save_or_a_stop_is_training(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, ledger, state = Clock(), DeviceTime(), experiment.state()

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
        spent=ledger,
        checkpointer=Hooks(save_due=lambda: state.step == 1, on_save=lambda _: seen.append(ledger.training_seconds)),
        should_stop=lambda: state.step == 3,
    )
    assert (seen, ledger.training_seconds) == ([8.0], 24.0)


@pytest.mark.usefixtures("_losses_wait")
def test_a_training_that_diverged_unseen_is_not_saved(experiment: Experiment) -> None:
    plain, recipe = replace(experiment, network=NO_NORM), replace(SGD, lr=1e20, validations_per_epoch=1)
    state, saved = plain.state(recipe), []
    with pytest.raises(DivergedError, match=r"the training loss is (nan|inf) at step 2: "):
        train(
            state,
            plain.data(recipe),
            recipe,
            checkpointer=Hooks(save_due=lambda: state.step != 2, on_save=lambda state: saved.append(state.step)),
        )
    assert state.step == 3
    assert saved == [1]


# -- recorder and ledger -----------------------------------------------------------------------------------------


class Failing(ListRecorder):
    def metrics(self, values: Mapping[str, float], step: int) -> None:
        if step == 3:
            raise OSError("no space left")
        super().metrics(values, step)


def test_a_recorder_that_fails_ends_the_training_with_its_own_error(experiment: Experiment) -> None:
    recorder = Failing()
    with pytest.raises(OSError, match="no space left"):
        train(experiment.state(), experiment.data(), RECIPE, observer=recorder)
    assert [step for step, _ in recorder.of("train/loss")] == [1, 2]


def test_the_ledger_adds_up_and_fits_into_the_wall_time(experiment: Experiment) -> None:
    ledger = DeviceTime()
    started = time.perf_counter()
    state = experiment.state()
    for stop_after in (3, 4, 100):
        train(state, experiment.data(), RECIPE, spent=ledger, should_stop=StopAfter(stop_after))
    wall = time.perf_counter() - started
    assert ledger.steps == STEPS
    assert ledger.training_seconds > 0
    assert ledger.evaluation_seconds > 0
    assert ledger.device_seconds == ledger.training_seconds + ledger.evaluation_seconds
    assert ledger.device_seconds <= wall


def test_the_ledger_knows_the_steps_of_a_training_that_diverged(experiment: Experiment) -> None:
    plain, recipe, ledger = replace(experiment, network=NO_NORM), replace(SGD, lr=1e20), DeviceTime()
    with pytest.raises(DivergedError):
        train(plain.state(recipe), plain.data(recipe), recipe, spent=ledger)
    assert ledger.steps == 1
    assert ledger.training_seconds > 0


def test_losses_on_a_device_are_read_back_in_order_and_only_now_and_then(experiment: Experiment) -> None:
    state, recorder = experiment.state(), ListRecorder()
    losses = LossLog(state, recorder, torch.device("cuda"))  # its name alone: no such device is used
    values = [float(value) for value in range(CUDA_LOSS_INTERVAL + 3)]
    for count, value in enumerate(values, start=1):
        losses.add(torch.tensor(value))
        assert len(state.train_losses) == (CUDA_LOSS_INTERVAL if count >= CUDA_LOSS_INTERVAL else 0)
    losses.flush()
    losses.flush()
    assert state.train_losses == values
    assert recorder.of("train/loss") == list(enumerate(values, start=1))


def test_a_bad_loss_among_those_that_wait_is_named_with_its_own_step(experiment: Experiment) -> None:
    state, recorder = experiment.state(), ListRecorder()
    losses = LossLog(state, recorder, torch.device("cuda"))
    for value in (1.0, 2.0, float("inf"), 3.0):
        losses.add(torch.tensor(value))
    with pytest.raises(DivergedError, match="the training loss is inf at step 3"):
        losses.flush()
    assert state.train_losses == [1.0, 2.0]
    assert recorder.of("train/loss") == [(1, 1.0), (2, 2.0)]
