"""Outputs of layers, and Grad-CAM compared with its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cnn_jobs.errors import UserError
from cnn_jobs.interpret.network import InspectedNetwork, pretrained_resnet18
from cnn_jobs.networks.spec import InputTransform

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def network() -> InspectedNetwork:
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 16, 5)
    )
    return InspectedNetwork("small", module.eval(), InputTransform(), (8, 8), (), "0", "0")


def test_output_of_a_layer_is_taken_before_an_inplace_relu(network: InspectedNetwork) -> None:
    images = torch.randn(1, 3, 8, 8)
    activation, probabilities = network.output_of("0", images)
    with torch.no_grad():
        expected, logits = network.module[0](images)[0], network.module(images)[0]
    np.testing.assert_allclose(activation, expected.numpy())
    assert (activation < 0).any()
    np.testing.assert_allclose(probabilities, logits.softmax(0).numpy(), rtol=1e-5)


def test_grad_cam_matches_its_formula(network: InspectedNetwork) -> None:
    images = torch.randn(1, 3, 8, 8)
    features = network.module[0](images).detach().requires_grad_()
    rest = nn.Sequential(nn.ReLU(), *list(network.module)[2:])
    rest(features)[0, 2].backward()
    assert features.grad is not None
    weights = features.grad.mean(dim=(2, 3), keepdim=True)
    expected = (weights * features).sum(1)[0].clamp(min=0).detach()
    assert float(expected.max()) > 0
    plane = network.grad_cam("0", images, 2)
    np.testing.assert_allclose(plane, (expected / expected.max()).numpy(), rtol=1e-4, atol=1e-6)
    assert all(module.inplace for module in network.module if isinstance(module, nn.ReLU))


def test_unsuitable_layers_are_rejected_in_one_line(network: InspectedNetwork) -> None:
    images = torch.randn(1, 3, 8, 8)
    for layer, words in (("nope", "its convolutions are 0"), ("4", "no picture"), ("3", "no picture")):
        with pytest.raises(UserError, match=words) as caught:
            network.output_of(layer, images)
        assert "\n" not in str(caught.value)


def test_input_is_resized_and_normalised(network: InspectedNetwork) -> None:
    pixels = np.full((16, 16, 3), 255, np.uint8)
    images = network.input_of(pixels)
    assert images.shape == (1, 3, 8, 8)
    assert torch.allclose(images, torch.tensor((1 - 0.5) / 0.25))


def test_random_weights_are_reproducible_and_noted() -> None:
    one, other = pretrained_resnet18(None), pretrained_resnet18(None)
    assert "random weights" in one.note
    assert torch.equal(next(one.module.parameters()), next(other.module.parameters()))
    assert not one.module.training
