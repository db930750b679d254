"""Convolution by tiles is convolution: exactly in fractions, to rounding in floats, backwards as well as forwards."""

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
from cnn_jobs.models.cpu_kernels.tiles import LARGEST_KERNEL, _as_tensors, best_tile
from cnn_jobs.models.cpu_kernels.winograd import WinogradConv2d, suits
from cnn_jobs.tasks import TASKS, get_task

pytestmark = pytest.mark.usefixtures("one_thread")


@contextmanager
def tiles(square: bool) -> Iterator[None]:
    """Of that kind, however few the channels."""
    with mock.patch.object(winograd, "LEAST_CHANNELS_FOR_SQUARES", 1 if square else 10_000):
        yield


@settings(max_examples=40)
@given(
    r=st.integers(3, LARGEST_KERNEL),
    padding=st.integers(0, 3),
    size=st.tuples(st.integers(5, 17), st.integers(5, 17)),
    channels=st.integers(1, 3),
    filters=st.integers(1, 3),
    count=st.integers(1, 3),
    bias=st.booleans(),
    channels_last=st.booleans(),
    square=st.booleans(),
)
def test_outputs_and_all_gradients_are_those_of_a_convolution(
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
def test_what_is_frozen_has_no_gradient_and_the_others_have_theirs(square: bool, frozen: str) -> None:
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
def test_rounding_in_float32_stays_within_3e_5_of_the_largest_output(
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


def test_the_tile_is_the_one_with_the_fewest_multiplications() -> None:
    assert best_tile((7, 7), 3, square=True) == 4  # 2 * 2 tiles of 36; one of 5 would need as many tiles of 49
    assert best_tile((15, 15), 3, square=True) == 5  # 3 * 3 tiles of 49 against 4 * 4 of 36
    assert best_tile((8, 8), 5, square=True) == 4
    assert best_tile((6, 6), 3, square=True) == 3  # one of 6: fewer multiplications, but kernels of 64 numbers
    assert best_tile((16, 16), 5, square=False) == 4
    assert best_tile((15, 99), 3, square=False) == 5  # 3 tiles of 7 a column, however many columns


@given(
    side=st.integers(5, 18), kernel=st.integers(3, 5), padding=st.integers(0, 2), window=st.integers(1, 4),
    stride=st.integers(1, 4), square=st.booleans(),
)  # fmt: skip
def test_what_a_pooling_leaves_over_is_not_computed_and_nothing_changes(
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


def test_the_final_architecture_leaves_out_what_its_last_pooling_does_not_read() -> None:
    """Of 7x7 outputs two by two are pooled: the seventh row and column go nowhere."""
    model = build_model(get_task("task3e").network, (3, 32, 32), 10, seed=0)
    seen = []
    for number in (2, 3):
        model.get_submodule(f"conv{number}").register_forward_hook(lambda m, i, output: seen.append(output.shape[2:]))
    model(torch.zeros(2, 3, 32, 32))
    assert [tuple(shape) for shape in seen] == [(15, 15), (6, 6)]


@pytest.mark.parametrize("name", TASKS)
def test_the_networks_compute_and_learn_what_they_would_with_plain_layers(name: str) -> None:
    def gradients(plain: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = whole_network(*build_network(get_task(name).network, (3, 32, 32), 10, seed=3)).double()
        for layer in model.modules():
            if isinstance(layer, WinogradConv2d):
                forward = nn.Conv2d.forward if plain else WinogradConv2d._by_tiles
                layer.forward = forward.__get__(layer)  # type: ignore[method-assign]
        torch.manual_seed(5)
        images = torch.randn(4, 3, 32, 32, dtype=torch.double)
        logits = model(images)
        nn.functional.cross_entropy(logits, torch.arange(4)).backward()
        return logits.detach(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}

    (ours, own), (theirs, their) = gradients(False), gradients(True)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert own.keys() == their.keys()
    for key, gradient in own.items():
        torch.testing.assert_close(gradient, their[key], rtol=1e-7, atol=1e-10)


def test_a_seed_gives_the_weights_of_the_plain_layer() -> None:
    torch.manual_seed(2)
    ours = WinogradConv2d(64, 8, 5, padding=2)
    torch.manual_seed(2)
    theirs = nn.Conv2d(64, 8, 5, padding=2)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    theirs.load_state_dict(ours.state_dict())


def test_tiles_are_for_many_channels_and_small_kernels() -> None:
    assert suits(32, 5, 1)
    assert not suits(63, 3, 1)
    assert suits(64, 3, 1)
    assert not suits(512, 3, 2)
    assert not suits(512, 1, 1)
    assert not suits(512, 7, 1)
    assert not suits(31, 5, 1)


def test_it_learns_after_an_evaluation_was_the_first_to_use_it() -> None:
    _as_tensors.cache_clear()
    layer, images = WinogradConv2d(64, 8, 5, padding=2), torch.randn(1, 64, 8, 8)
    with torch.inference_mode():
        layer(images)
    layer(images).sum().backward()
    assert layer.weight.grad is not None


def test_it_is_the_plain_layer_where_tiles_do_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
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
