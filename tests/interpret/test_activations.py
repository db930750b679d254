"""What a layer answers, and Grad-CAM against its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cnn_jobs.errors import UserError
from cnn_jobs.interpret.measurements import measure_channel
from cnn_jobs.interpret.picture import draw_picture
from cnn_jobs.interpret.subject import Subject, grad_cam, look, pretrained_resnet18
from cnn_jobs.networks.spec import InputTransform

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def subject() -> Subject:
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 16, 5)
    )
    return Subject("small", network.eval(), InputTransform(), (8, 8), (), "0", "0")


def test_a_layers_output_is_seen_as_it_leaves_the_layer(subject: Subject) -> None:
    images = torch.randn(1, 3, 8, 8)
    seen = look(subject, "0", images)
    with torch.no_grad():
        expected, logits = subject.network[0](images)[0], subject.network(images)[0]
    np.testing.assert_allclose(seen.activation, expected.numpy())
    assert (seen.activation < 0).any()  # the in-place ReLU behind it has not changed what was kept
    assert seen.predicted == int(logits.argmax())
    assert seen.probability == pytest.approx(float(logits.softmax(0).max()), rel=1e-5)


def test_grad_cam_is_its_formula(subject: Subject) -> None:
    images = torch.randn(1, 3, 8, 8)
    features = subject.network[0](images).detach().requires_grad_()
    rest = nn.Sequential(nn.ReLU(), *list(subject.network)[2:])
    rest(features)[0, 2].backward()
    assert features.grad is not None
    weights = features.grad.mean(dim=(2, 3), keepdim=True)
    expected = (weights * features).sum(1)[0].clamp(min=0).detach()
    assert float(expected.max()) > 0
    plane = grad_cam(subject, "0", images, 2)
    np.testing.assert_allclose(plane, (expected / expected.max()).numpy(), rtol=1e-4, atol=1e-6)
    assert all(module.inplace for module in subject.network if isinstance(module, nn.ReLU))


def test_layers_that_are_not_there_or_no_picture_are_refused_in_one_line(subject: Subject) -> None:
    images = torch.randn(1, 3, 8, 8)
    for layer, words in (("nope", "its convolutions are 0"), ("4", "no picture"), ("3", "no picture")):
        with pytest.raises(UserError, match=words) as caught:
            look(subject, layer, images)
        assert "\n" not in str(caught.value)


def test_a_picture_goes_in_normalised_and_resized(subject: Subject) -> None:
    pixels = np.full((16, 16, 3), 255, np.uint8)
    images = subject.input_of(pixels)
    assert images.shape == (1, 3, 8, 8)
    assert torch.allclose(images, torch.tensor((1 - 0.5) / 0.25))


def test_random_weights_say_that_they_are() -> None:
    one, other = pretrained_resnet18(None), pretrained_resnet18(None)
    assert "random weights" in one.note
    assert torch.equal(next(one.network.parameters()), next(other.network.parameters()))
    assert not one.network.training


def test_a_channel_is_measured() -> None:
    plane = np.zeros((4, 4))
    plane[0, 3], plane[3, 0] = 4, 1
    facts = measure_channel(7, plane, draw_picture())
    assert (facts.index, facts.sparsity, facts.highest, facts.area) == (7, 14 / 16, 4, 1 / 16)
    assert facts.peak == (0.125, 0.875)
    assert facts.region == "blue sky"
    assert facts.words() == "88% zero, above half in 6%"
    assert measure_channel(0, np.zeros((4, 4)), draw_picture()).words() == "silent"
