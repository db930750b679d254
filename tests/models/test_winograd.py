"""Convolutions by tiles have the outputs and gradients of torch's, and replace them where they are faster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from cnn_jobs.models.build import build_model, build_network, whole_network
from cnn_jobs.models.cpu_kernels import winograd
from cnn_jobs.models.cpu_kernels.tiles import _as_tensors, best_tile
from cnn_jobs.models.cpu_kernels.winograd import WinogradConv2d, use_fast_convolutions
from cnn_jobs.tasks import TASKS, get_task

pytestmark = pytest.mark.usefixtures("one_thread")


@contextmanager
def tiles(square: bool) -> Iterator[None]:
    """Tiles of m x m or of m x 1, for any number of channels."""
    with mock.patch.object(winograd, "LEAST_CHANNELS_FOR_SQUARES", 1 if square else 10_000):
        yield


@settings(max_examples=40)
@given(
    r=st.integers(3, 5),
    padding=st.integers(0, 3),
    size=st.tuples(st.integers(5, 17), st.integers(5, 17)),
    channels=st.integers(1, 3),
    filters=st.integers(1, 3),
    count=st.integers(1, 3),
    bias=st.booleans(),
    channels_last=st.booleans(),
    square=st.booleans(),
)
def test_outputs_and_gradients_are_those_of_torch(
    r: int,
    padding: int,
    size: tuple[int, int],
    channels: int,
    filters: int,
    count: int,
    bias: bool,
    channels_last: bool,
    square: bool,
) -> None:
    ours = WinogradConv2d(channels, filters, r, padding=padding, bias=bias).double()
    theirs = nn.Conv2d(channels, filters, r, padding=padding, bias=bias).double()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(count, channels, *size, dtype=torch.double)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    first, second = images.clone().requires_grad_(), images.clone().requires_grad_()
    with tiles(square):
        output, expected = ours._by_tiles(first), theirs(second)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(expected)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-9, atol=1e-9)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("frozen", ["images", "weight"])
@pytest.mark.parametrize("square", [False, True])
def test_frozen_tensors_have_no_gradient(square: bool, frozen: str) -> None:
    ours, theirs = (WinogradConv2d(2, 3, 3, padding=1).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 2, 9, 7, dtype=torch.double)
    gradients = []
    with tiles(square):
        for layer, forward in ((ours, WinogradConv2d._by_tiles), (theirs, nn.Conv2d.forward)):
            layer.weight.requires_grad_(frozen != "weight")
            given = images.clone().requires_grad_(frozen != "images")
            forward(layer, given).square().sum().backward()
            gradients.append([given.grad, layer.weight.grad, layer.bias.grad])
    for own, other in zip(*gradients, strict=True):
        assert (own is None) == (other is None)
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)
    assert sum(gradient is None for gradient in gradients[0]) == 1


@pytest.mark.parametrize(
    ("channels", "side", "filters", "kernel"), [(32, 16, 64, 5), (64, 8, 128, 5), (128, 7, 256, 3), (512, 7, 512, 3)]
)
def test_rounding_in_float32_is_below_3e_5_of_the_largest_output(
    channels: int, side: int, filters: int, kernel: int
) -> None:
    torch.manual_seed(1)
    layer = WinogradConv2d(channels, filters, kernel, padding=kernel // 2)
    images = torch.randn(4, channels, side, side)
    exact = nn.functional.conv2d(
        images.double(), layer.weight.double(), layer.bias.double() if layer.bias is not None else None, padding="same"
    )
    difference = (layer(images).double() - exact).abs().max() / exact.abs().max()
    assert 0 < difference < 3e-5


def test_tile_with_the_fewest_multiplications_is_chosen() -> None:
    assert best_tile((7, 7), 3, square=True) == 4  # 2 * 2 tiles of 36; one of 5 would need as many tiles of 49
    assert best_tile((15, 15), 3, square=True) == 5  # 3 * 3 tiles of 49 against 4 * 4 of 36
    assert best_tile((8, 8), 5, square=True) == 4
    assert best_tile((6, 6), 3, square=True) == 3  # one of 6: fewer multiplications, but kernels of 64 numbers
    assert best_tile((16, 16), 5, square=False) == 4
    assert best_tile((15, 99), 3, square=False) == 5  # 3 tiles of 7 in each column, for any number of columns


@given(
    side=st.integers(5, 18), kernel=st.integers(3, 5), padding=st.integers(0, 2), window=st.integers(1, 4),
    stride=st.integers(1, 4), square=st.booleans(),
)  # fmt: skip
def test_outputs_that_the_pooling_does_not_read_are_not_computed(
    side: int, kernel: int, padding: int, window: int, stride: int, square: bool
) -> None:
    whole = side + 2 * padding - kernel + 1
    assume(whole >= window)
    torch.manual_seed(side)
    layer = WinogradConv2d(3, 4, kernel, padding=padding).double()
    layer.pooling = (window, stride)
    pool = nn.MaxPool2d(window, stride)
    results = []
    for by_tiles in (True, False):
        images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.double)
        with tiles(square):
            forward = WinogradConv2d._by_tiles if by_tiles else nn.Conv2d.forward
            outputs = forward(layer, images.requires_grad_())
        if by_tiles:
            left_over = (whole - window) % stride
            read = whole - left_over * (left_over <= padding)
            assert outputs.shape[2:] == (read, read if square else whole)
        pooled = pool(outputs)
        layer.zero_grad()
        (pooled * torch.arange(pooled.numel()).view(pooled.shape)).sum().backward()
        results.append([pooled.detach(), images.grad, *(parameter.grad.clone() for parameter in layer.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    assert layer.eval()._by_tiles(images.detach()).shape[2:] == (whole, whole)


def replaced(model: nn.Module) -> dict[str, tuple[int, int] | None]:
    """Names of the layers by tiles, each with its pooling."""
    return {name: layer.pooling for name, layer in model.named_modules() if isinstance(layer, WinogradConv2d)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("task2", {"conv2": (2, 2), "conv3": (2, 2)}),
        ("task3c-avgpool", {"conv2": (2, 2), "conv3": (2, 2)}),
        ("task3e", {"conv2": (3, 2), "conv3": (2, 2)}),
        ("task4a", {"layer4.0.conv2": None, "layer4.1.conv1": None, "layer4.1.conv2": None}),
    ],
)
def test_convolutions_with_many_channels_are_replaced(name: str, expected: dict[str, tuple[int, int] | None]) -> None:
    _, model = build_network(get_task(name).network, (3, 32, 32), 10, seed=0)
    before, generator = dict(model.named_parameters()), torch.get_rng_state()
    use_fast_convolutions(model)
    assert replaced(model) == expected
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(parameter is before[key] for key, parameter in after.items())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(
    ("layer", "faster"),
    [
        (nn.Conv2d(32, 8, 5), True),
        (nn.Conv2d(31, 8, 5), False),
        (nn.Conv2d(64, 8, 4), True),
        (nn.Conv2d(64, 8, 3, padding=1, bias=False), True),
        (nn.Conv2d(63, 8, 3), False),
        (nn.Conv2d(512, 8, 1), False),
        (nn.Conv2d(512, 8, 7), False),
        (nn.Conv2d(64, 8, (3, 5)), False),
        (nn.Conv2d(512, 8, 3, stride=2), False),
        (nn.Conv2d(512, 8, 3, dilation=2), False),
        (nn.Conv2d(512, 8, 3, groups=2), False),
        (nn.Conv2d(512, 8, 3, padding="same"), False),
        (nn.Conv2d(512, 8, 3, padding=(1, 0)), False),
        (nn.Conv2d(512, 8, 3, padding=1, padding_mode="reflect"), False),
    ],
)
def test_only_suitable_convolutions_are_replaced(layer: nn.Conv2d, faster: bool) -> None:
    model = nn.ModuleDict({"inner": nn.Sequential(layer)})
    images = torch.randn(2, layer.in_channels, 9, 11)
    expected = layer(images)
    use_fast_convolutions(model)
    assert replaced(model) == ({"inner.0": None} if faster else {})
    torch.testing.assert_close(model["inner"](images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layers", "pooling"),
    [
        ([nn.MaxPool2d(3, 2)], (3, 2)),
        ([nn.ReLU(), nn.AvgPool2d(2)], (2, 2)),
        ([nn.Sigmoid(), nn.MaxPool2d(2)], None),
        ([nn.BatchNorm2d(8), nn.MaxPool2d(2)], None),
        ([nn.MaxPool2d(2, padding=1)], None),
        ([nn.MaxPool2d(2, ceil_mode=True)], None),
        ([nn.MaxPool2d(2, dilation=2)], None),
        ([nn.MaxPool2d((2, 3))], None),
        ([nn.MaxPool2d(2, (2, 1))], None),
        ([], None),
    ],
)
def test_pooling_behind_a_convolution_is_found(layers: list[nn.Module], pooling: tuple[int, int] | None) -> None:
    model = nn.Sequential(nn.Conv2d(32, 8, 5), *layers)
    use_fast_convolutions(model)
    assert replaced(model) == {"0": pooling}


def test_final_architecture_omits_outputs_that_its_last_pooling_does_not_read() -> None:
    """Of 7 x 7 outputs, 6 x 6 are pooled in pairs."""
    model = build_model(get_task("task3e").network, (3, 32, 32), 10, seed=0)
    use_fast_convolutions(model)
    shapes = []
    for number in (2, 3):
        model.get_submodule(f"conv{number}").register_forward_hook(lambda m, i, output: shapes.append(output.shape[2:]))
    model(torch.zeros(2, 3, 32, 32))
    assert [tuple(shape) for shape in shapes] == [(15, 15), (6, 6)]


@pytest.mark.parametrize("name", TASKS)
def test_networks_have_the_outputs_and_gradients_of_torch(name: str) -> None:
    def gradients(fast: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = whole_network(*build_network(get_task(name).network, (3, 32, 32), 10, seed=3)).double()
        if fast:
            use_fast_convolutions(model)
        for layer in model.modules():
            if isinstance(layer, WinogradConv2d):
                layer.forward = layer._by_tiles  # type: ignore[method-assign]  # in double precision, too
        torch.manual_seed(5)
        images = torch.randn(4, 3, 32, 32, dtype=torch.double)
        logits = model(images)
        nn.functional.cross_entropy(logits, torch.arange(4)).backward()
        return logits.detach(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}

    (ours, own), (theirs, their) = gradients(fast=True), gradients(fast=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert own.keys() == their.keys()
    for key, gradient in own.items():
        torch.testing.assert_close(gradient, their[key], rtol=1e-7, atol=1e-10)


def test_training_after_a_first_use_in_inference_mode() -> None:
    _as_tensors.cache_clear()
    layer, images = WinogradConv2d(64, 8, 5, padding=2), torch.randn(1, 64, 8, 8)
    with torch.inference_mode():
        layer(images)
    layer(images).sum().backward()
    assert layer.weight.grad is not None


def test_other_precisions_and_exported_models_use_torchs_convolution() -> None:
    layer = WinogradConv2d(64, 8, 5, padding=2)
    images = torch.randn(1, 64, 8, 8)
    plain = nn.Conv2d.forward(layer, images)
    assert not torch.equal(layer(images), plain)  # tiles: other rounding
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(images), nn.Conv2d.forward(layer, images))
    assert torch.equal(layer.double()(images.double()), nn.Conv2d.forward(layer, images.double()))
    program = torch.export.export(layer.float(), (images,))
    names = {str(node.target) for node in program.graph.nodes}
    assert any("conv2d" in name for name in names)
    assert not any("bmm" in name for name in names)
