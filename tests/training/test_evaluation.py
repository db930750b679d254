"""Loss and accuracy of a model on a part of a data set."""

import math

import pytest
import torch
from torch import nn

from cnn_jobs.data.batches import ImageSet
from cnn_jobs.training.evaluation import EvaluationStoppedError, accuracy, evaluate, precision_context
from tests.helpers.training import Experiment


class FirstPixel(nn.Module):
    """Returns the three colours of the first pixel as logits."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :, 0, 0]


def image_set(logits: list[list[int]], labels: list[int], indices: list[int] | None = None) -> ImageSet:
    """Images of one pixel, which reach the network unchanged."""
    images = torch.tensor(logits, dtype=torch.uint8).reshape(len(logits), 3, 1, 1)
    chosen = torch.arange(len(logits)) if indices is None else torch.tensor(indices)
    one, zero = torch.ones(1, 3, 1, 1), torch.zeros(1, 3, 1, 1)
    return ImageSet(images, torch.tensor(labels), chosen, one, zero, torch.contiguous_format)


def cross_entropy(logits: list[int], label: int) -> float:
    return math.log(sum(math.exp(value) for value in logits)) - logits[label]


LOGITS, LABELS = [[2, 1, 0], [0, 3, 1], [5, 5, 9], [1, 0, 0]], [0, 2, 2, 0]


def test_loss_and_accuracy_of_known_logits() -> None:
    result = evaluate(FirstPixel(), image_set(LOGITS, LABELS))
    expected = sum(cross_entropy(row, label) for row, label in zip(LOGITS, LABELS, strict=True)) / 4
    assert result.loss == pytest.approx(expected, abs=1e-12)
    assert result.accuracy == 0.75
    assert result.logits.dtype == torch.float32
    assert result.logits.tolist() == LOGITS


def test_only_images_of_the_part_count() -> None:
    result = evaluate(FirstPixel(), image_set(LOGITS, LABELS, indices=[1, 3]))
    assert result.loss == pytest.approx((cross_entropy([0, 3, 1], 2) + cross_entropy([1, 0, 0], 0)) / 2, abs=1e-12)
    assert result.accuracy == 0.5
    assert result.logits.tolist() == [[0, 3, 1], [1, 0, 0]]


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5])
def test_batch_size_does_not_change_the_figures(batch: int) -> None:
    expected = evaluate(FirstPixel(), image_set(LOGITS, LABELS))
    result = evaluate(FirstPixel(), image_set(LOGITS, LABELS), batch_size=batch)
    assert (result.loss, result.accuracy) == (expected.loss, expected.accuracy)
    assert torch.equal(result.logits, expected.logits)


@pytest.mark.parametrize("training", [True, False])
def test_mode_of_the_model_is_restored(experiment: Experiment, training: bool) -> None:
    model = experiment.state().model.train(training)
    evaluate(model, experiment.data().validation)
    assert {module.training for module in model.modules()} == {training}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batches", [1, 2, 3])
def test_evaluation_can_be_stopped_between_two_batches(batches: int, training: bool) -> None:
    model, seen = FirstPixel().train(training), []
    model.register_forward_hook(lambda module, *_: seen.append(module.training))
    part = image_set(LOGITS, LABELS)
    with pytest.raises(EvaluationStoppedError):
        evaluate(model, part, batch_size=1, should_stop=lambda: len(seen) == batches)
    assert seen == [False] * batches
    assert model.training is training
    assert not torch.is_inference_mode_enabled()
    assert evaluate(model, part, batch_size=1, should_stop=lambda: len(seen) == batches).loss > 0  # never stopped


@pytest.mark.parametrize(("batch", "times"), [(1, 3), (2, 1), (3, 1), (4, 0), (9, 0)])
def test_stop_is_not_requested_after_the_last_batch(batch: int, times: int) -> None:
    calls: list[bool] = []
    evaluate(FirstPixel(), image_set(LOGITS, LABELS), batch_size=batch, should_stop=lambda: bool(calls.append(False)))
    assert len(calls) == times


def test_mode_of_a_failing_model_is_restored() -> None:
    model = nn.Linear(7, 2)  # no image has 7 columns
    with pytest.raises(RuntimeError):
        evaluate(model, image_set(LOGITS, LABELS))
    assert model.training


def test_evaluation_changes_neither_statistics_nor_generators(experiment: Experiment) -> None:
    model, part = experiment.state().model.train(), experiment.data().train
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    first, second = evaluate(model, part), evaluate(model, part)
    assert torch.equal(first.logits, second.logits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    with torch.no_grad():
        images, _ = part.batch(torch.arange(len(part)))
        torch.testing.assert_close(model.eval()(images), first.logits)
        assert not torch.allclose(model.train()(images), first.logits)  # the model has dropout


def test_accuracy_of_known_logits() -> None:
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert accuracy(logits, torch.tensor([1, 0, 0])) == pytest.approx(2 / 3)
    assert accuracy(logits, torch.tensor([0, 1, 0])) == 0.0
    assert accuracy(logits, torch.tensor([1, 0, 1])) == 1.0


def test_accuracy_rejects_labels_of_another_length() -> None:
    with pytest.raises(ValueError, match="3 rows of logits, 2 labels"):
        accuracy(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))


def test_bf16_computes_in_bfloat16() -> None:
    layer, images = nn.Linear(3, 3), torch.rand(2, 3)
    types = {}
    for precision in ("fp32", "bf16"):
        with precision_context(precision, torch.device("cpu")):
            types[precision] = layer(images).dtype
    assert types == {"fp32": torch.float32, "bf16": torch.bfloat16}


def test_bf16_gives_float32_logits_near_those_of_fp32(experiment: Experiment) -> None:
    model, part = experiment.state().model, experiment.data().validation
    exact, rough = evaluate(model, part), evaluate(model, part, "bf16")
    assert rough.logits.dtype == torch.float32
    assert rough.loss == pytest.approx(exact.loss, abs=0.05)
    assert not torch.equal(rough.logits, exact.logits)
