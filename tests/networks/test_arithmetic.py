"""The formulas, compared with torch on its ``meta`` device: shapes without values."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cnn_jobs.errors import RecipeError
from cnn_jobs.networks.arithmetic import kernels_between, receptive_field, same_padding, window_output_size

META = torch.device("meta")
SMALL = st.integers(1, 12)


@given(height=st.integers(1, 70), width=st.integers(1, 70), kernel=SMALL, stride=SMALL, padding=st.integers(0, 12))
def test_size_of_a_convolution_matches_torch(height: int, width: int, kernel: int, stride: int, padding: int) -> None:
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
def test_size_of_a_pooling_matches_torch(pool: type[nn.Module], size: int, kernel: int, stride: int) -> None:
    layer = pool(kernel, stride)
    images = torch.empty(1, 1, size, size, device=META)
    if kernel > size:
        with pytest.raises(RuntimeError):
            layer(images)
        with pytest.raises(RecipeError):
            window_output_size(size, kernel=kernel, stride=stride)
    else:
        assert layer(images).shape[2] == window_output_size(size, kernel=kernel, stride=stride)


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
def test_impossible_sizes_are_rejected_in_one_line_with_their_numbers(
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


# -- from sizes to paddings and kernels --------------------------------------------------------------------------------


@given(kernel=st.integers(1, 31), size=st.integers(1, 60))
def test_same_padding_keeps_the_size_and_does_not_exist_for_even_kernels(kernel: int, size: int) -> None:
    if kernel % 2:
        padding = same_padding(kernel)
        assert nn.Conv2d(1, 1, kernel, padding=padding, device=META)(torch.empty(1, 1, size, size, device=META)).shape[
            2:
        ] == (size, size)
    else:
        with pytest.raises(RecipeError, match="even"):
            same_padding(kernel)
        sizes = {window_output_size(size, kernel=kernel, stride=1, padding=padding) for padding in range(kernel, 40)}
        assert kernel > 30 or size not in sizes


@given(size=st.integers(1, 60), output=st.integers(1, 60), stride=SMALL, padding=st.integers(0, 5))
def test_kernels_between_two_sizes_match_torch(size: int, output: int, stride: int, padding: int) -> None:
    def gives(kernel: int) -> bool:
        if kernel > size + 2 * padding:
            return False
        layer = nn.Conv2d(1, 1, kernel, stride=stride, padding=padding, device=META)
        return bool(layer(torch.empty(1, 1, size, size, device=META)).shape[2] == output)

    expected = [kernel for kernel in range(1, size + 2 * padding + 1) if gives(kernel)]
    if expected:
        assert list(kernels_between(size, output, stride=stride, padding=padding)) == expected
    else:
        with pytest.raises(RecipeError, match="no kernel reduces"):
            kernels_between(size, output, stride=stride, padding=padding)


@given(windows=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), max_size=4))
def test_receptive_field_is_what_the_gradient_reaches(windows: list[tuple[int, int]]) -> None:
    """Along one side, behind all-one kernels, in the middle of an image that is large enough."""
    side = receptive_field(windows)
    pixels = torch.zeros(1, 1, side, dtype=torch.double, requires_grad=True)
    values = pixels
    for kernel, stride in windows:
        values = nn.functional.conv1d(values, torch.ones(1, 1, kernel, dtype=torch.double), stride=stride)
    assert values.shape[2] == 1  # one pixel less, and there would be none
    values.sum().backward()
    assert pixels.grad is not None
    covered = all(kernel >= stride for kernel, stride in windows)  # else it has holes
    reached = pixels.grad.flatten().nonzero().flatten()
    assert int(reached[0]) == 0
    assert int(reached[-1]) == side - 1
    assert not covered or len(reached) == side


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: same_padding(0), "kernel 0: must be at least 1"),
        (lambda: kernels_between(8, 9), "no kernel reduces 8 pixels to 9"),
        (lambda: kernels_between(8, 4, stride=0), "stride 0: must be at least 1"),
        (lambda: kernels_between(8, 4, padding=-1), "padding -1: must be at least 0"),
        (lambda: kernels_between(-8, 4), "size -8: must be at least 1"),
        (lambda: receptive_field([(3, 0)]), "stride 0: must be at least 1"),
    ],
)
def test_illegal_numbers_are_rejected_in_one_line(call: Callable[[], object], words: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(words)) as caught:
        call()
    assert "\n" not in str(caught.value)
