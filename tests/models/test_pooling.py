"""A bias that is added behind the pooling is the same bias: outputs, gradients, and for whoever looks at the layers."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.networks import usual_network
from cnn_jobs.models.build import build_model
from cnn_jobs.models.pooling import BiasMaxPool2d, LateBiasConv2d, add_bias_late
from cnn_jobs.networks.spec import ConvNet
from cnn_jobs.tasks import TASKS, get_task

pytestmark = pytest.mark.usefixtures("one_thread")


def plain_and_late(channels: int, filters: int, kernel: int, window: int, stride: int) -> tuple[nn.Module, nn.Module]:
    plain = nn.Sequential(nn.Conv2d(channels, filters, kernel, padding=kernel // 2), nn.MaxPool2d(window, stride))
    late = copy.deepcopy(plain)
    add_bias_late(late[0], late[1])  # type: ignore[arg-type]
    return plain.double(), late.double()


@settings(max_examples=40)
@given(
    channels=st.integers(1, 3),
    filters=st.integers(1, 4),
    kernel=st.integers(1, 5),
    window=st.integers(1, 4),
    stride=st.integers(1, 4),
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    channels_last=st.booleans(),
    of_images=st.booleans(),
)
def test_outputs_and_all_gradients_are_those_of_the_plain_layers(
    channels: int,
    filters: int,
    kernel: int,
    window: int,
    stride: int,
    size: tuple[int, int],
    channels_last: bool,
    of_images: bool,
) -> None:
    results = []
    given_images = torch.randn(3, channels, *size, dtype=torch.double)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for model in plain_and_late(channels, filters, kernel, window, stride):
        model.to(memory_format=layout)  # type: ignore[call-overload]
        images = given_images.clone(memory_format=layout).requires_grad_(of_images)
        outputs = model(images)
        (outputs * torch.arange(outputs.numel()).view(outputs.shape)).sum().backward()
        results.append([outputs.detach(), images.grad, *(parameter.grad for parameter in model.parameters())])
    for plain, late in zip(*results, strict=True):
        assert (plain is None) == (late is None)
        torch.testing.assert_close(late, plain, rtol=1e-9, atol=1e-9)


def test_only_in_training_on_a_cpu_it_is_added_late() -> None:
    plain, late = (model.float() for model in plain_and_late(3, 4, 3, 2, 2))
    images = torch.randn(2, 3, 8, 8)
    bias = plain[0].bias[:, None, None]  # type: ignore[index]
    torch.testing.assert_close(late[0](images) + bias, plain[0](images))  # type: ignore[index]

    def is_plain() -> bool:
        same = torch.equal(late[0](images), plain[0](images))  # type: ignore[index]
        return bool(same and torch.equal(late(images), plain(images)))

    assert not is_plain()
    with torch.no_grad():
        assert is_plain()
    with torch.autocast("cpu", torch.bfloat16):
        assert is_plain()
    late.eval()
    assert is_plain()
    exported = torch.export.export(late, (images,)).module()
    torch.testing.assert_close(exported(images), plain(images))


def test_a_frozen_bias_has_no_gradient_and_a_layer_without_one_stays_as_it_is() -> None:
    _, late = plain_and_late(3, 4, 3, 2, 2)
    late[0].bias.requires_grad_(False)  # type: ignore[index]
    late(torch.randn(2, 3, 8, 8, dtype=torch.double)).sum().backward()
    assert late[0].bias.grad is None  # type: ignore[index]
    assert late[0].weight.grad is not None  # type: ignore[index]
    convolution, pool = nn.Conv2d(3, 4, 3, bias=False), nn.MaxPool2d(2)
    add_bias_late(convolution, pool)
    assert (type(convolution), type(pool)) == (nn.Conv2d, nn.MaxPool2d)


def test_a_copy_of_a_network_adds_its_own_bias() -> None:
    _, late = plain_and_late(3, 4, 3, 2, 2)
    copied = copy.deepcopy(late)
    with torch.no_grad():
        copied[0].bias += 1  # type: ignore[index]
    images = torch.randn(2, 3, 8, 8, dtype=torch.double)
    torch.testing.assert_close(copied(images), late(images) + 1)
    assert list(copied.state_dict()) == ["0.weight", "0.bias"]


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if isinstance(task.network, ConvNet)])
def test_in_a_network_the_first_block_has_it_where_it_pools_maxima(name: str) -> None:
    network = get_task(name).network
    assert isinstance(network, ConvNet)
    model = build_model(network, (3, 32, 32), 10, seed=0)
    late = [child for child, module in model.named_children() if isinstance(module, LateBiasConv2d | BiasMaxPool2d)]
    assert late == ([] if name == "task3c-avgpool" else ["conv1", "pool1"])
    usual = usual_network(network, model, own_convolutions=True)  # whose pooling knows nothing of it
    images = torch.randn(2, 3, 32, 32)
    for module in (model, usual):
        module.requires_grad_(False).train()
        for layer in module.modules():
            if isinstance(layer, nn.Dropout):
                layer.eval()
    torch.testing.assert_close(model(images), usual(images), rtol=1e-4, atol=1e-4)
