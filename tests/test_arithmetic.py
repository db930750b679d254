"""The formulas against torch, on its ``meta`` device: shapes without numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cnn_jobs.arithmetic import batch_norm_parameters, conv_parameters, linear_parameters, window_output_size
from cnn_jobs.errors import RecipeError

META = torch.device("meta")
SMALL = st.integers(1, 12)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@given(height=st.integers(1, 70), width=st.integers(1, 70), kernel=SMALL, stride=SMALL, padding=st.integers(0, 12))
def test_a_convolution_has_torchs_size_or_is_refused_as_by_torch(
    height: int, width: int, kernel: int, stride: int, padding: int
) -> None:
    layer = nn.Conv2d(1, 1, kernel, stride=stride, padding=padding, device=META)
    images = torch.empty(1, 1, height, width, device=META)
    if kernel > min(height, width) + 2 * padding:
        with pytest.raises(RuntimeError):
            layer(images)
        with pytest.raises(RecipeError):
            window_output_size(min(height, width), kernel=kernel, stride=stride, padding=padding)
    else:
        sides = [window_output_size(side, kernel=kernel, stride=stride, padding=padding) for side in (height, width)]
        assert list(layer(images).shape[2:]) == sides


@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
@given(size=st.integers(1, 70), kernel=SMALL, stride=SMALL)
def test_a_pooling_has_torchs_size_or_is_refused_as_by_torch(
    pool: type[nn.Module], size: int, kernel: int, stride: int
) -> None:
    layer = pool(kernel, stride)
    images = torch.empty(1, 1, size, size, device=META)
    if kernel > size:
        with pytest.raises(RuntimeError):
            layer(images)
        with pytest.raises(RecipeError):
            window_output_size(size, kernel=kernel, stride=stride)
    else:
        assert layer(images).shape[2] == window_output_size(size, kernel=kernel, stride=stride)


@given(channels=SMALL, filters=SMALL, kernel=SMALL)
def test_a_convolution_has_torchs_parameters(channels: int, filters: int, kernel: int) -> None:
    assert conv_parameters(channels, filters, kernel) == count(nn.Conv2d(channels, filters, kernel, device=META))


@given(inputs=st.integers(1, 5000), outputs=st.integers(1, 5000))
def test_a_linear_layer_has_torchs_parameters(inputs: int, outputs: int) -> None:
    assert linear_parameters(inputs, outputs) == count(nn.Linear(inputs, outputs, device=META))


@given(channels=st.integers(1, 5000))
def test_a_batch_norm_has_torchs_parameters(channels: int) -> None:
    assert batch_norm_parameters(channels) == count(nn.BatchNorm2d(channels, device=META))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "expected"),
    [
        (32, 5, 1, 2, 32),  # task 1c: padding 2 keeps the size for a 5x5 kernel
        (512, 9, 1, 0, 504),  # task 1d
        (504, 2, 2, 0, 252),  # task 1e
        (252, 3, 1, 0, 250),  # task 1f
        (32, 4, 2, 0, 15),  # task3-arch1, first pooling
        (15, 3, 2, 0, 7),
        (7, 2, 2, 0, 3),
        (5, 5, 3, 0, 1),
    ],
)
def test_known_sizes(size: int, kernel: int, stride: int, padding: int, expected: int) -> None:
    assert window_output_size(size, kernel=kernel, stride=stride, padding=padding) == expected


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [(0, 1, 1, 0), (-3, 1, 1, 0), (8, 0, 1, 0), (8, 3, 0, 0), (8, 3, 1, -1), (4, 5, 1, 0), (2, 7, 1, 2)],
)
def test_what_cannot_be_is_refused_in_one_line_with_its_numbers(
    size: int, kernel: int, stride: int, padding: int
) -> None:
    with pytest.raises(RecipeError) as caught:
        window_output_size(size, kernel=kernel, stride=stride, padding=padding)
    message = str(caught.value)
    assert "\n" not in message
    assert f"kernel {kernel}" in message
    assert f"padding {padding}" in message
    assert str(size) in message
    assert caught.value.exit_code == 2
