"""Sizes, counts and costs of convolutional networks, in plain integers.

The formulas are those of torch's own documentation of ``Conv2d``, ``MaxPool2d``, ``BatchNorm2d`` and ``Linear``
(dilation 1, floor); the tests hold them against torch. Every function raises ``RecipeError`` for numbers that no layer
can have.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from cnn_jobs.errors import RecipeError

Image = Sequence[Sequence[int]]
BYTES_PER_NUMBER = 4  # 32-bit floating point


def window_output_size(size: int, *, kernel: int, stride: int, padding: int = 0) -> int:
    """Positions of a window along one side of ``size`` pixels: floor((size + 2 padding - kernel) / stride) + 1.

    Holds for convolution and for pooling. Raises ``RecipeError`` where no window fits.
    """
    if size < 1 or kernel < 1 or stride < 1 or padding < 0:
        raise RecipeError(
            f"size {size}, kernel {kernel}, stride {stride}, padding {padding}: the first three must be "
            "at least 1 and padding at least 0"
        )
    if kernel > size + 2 * padding:
        raise RecipeError(
            f"kernel {kernel} is larger than its input of {size} pixels with padding {padding}; "
            "use larger images or a smaller kernel"
        )
    return (size + 2 * padding - kernel) // stride + 1


def same_padding(kernel: int) -> int:
    """Padding on each side that keeps the size at stride 1: (kernel - 1) / 2; there is none for an even kernel."""
    _positive(kernel=kernel)
    if kernel % 2 == 0:
        raise RecipeError(
            f"kernel {kernel} is even: no padding that is the same on both sides keeps the size; use an odd kernel"
        )
    return (kernel - 1) // 2


def kernels_between(size: int, output: int, *, stride: int = 1, padding: int = 0) -> range:
    """The kernels that take ``size`` pixels to ``output``: one at stride 1, ``stride`` of them (or fewer) above.

    From ``window_output_size``: output <= (size + 2 padding - kernel) / stride + 1 < output + 1.
    """
    _positive(size=size, output=output, stride=stride)
    if padding < 0:
        raise RecipeError(f"padding {padding}: must be at least 0")
    largest = size + 2 * padding - (output - 1) * stride
    kernels = range(max(1, largest - stride + 1), largest + 1)
    if not kernels:
        raise RecipeError(
            f"no kernel takes {size} pixels to {output} at stride {stride} with padding {padding}: "
            f"the smallest, 1, gives {window_output_size(size, kernel=1, stride=stride, padding=padding)}"
        )
    return kernels


def receptive_field(windows: Sequence[tuple[int, int]]) -> int:
    """Side, in pixels of the image, of what one output sees behind ``windows`` of (kernel, stride), the first first.

    Each adds (kernel - 1) times the product of the strides before it (Araujo, Norris and Sim, "Computing Receptive
    Fields of Convolutional Neural Networks", Distill 2019). It may reach beyond the image, into the padding.
    """
    field, jump = 1, 1
    for kernel, stride in windows:
        _positive(kernel=kernel, stride=stride)
        field += (kernel - 1) * jump
        jump *= stride
    return field


def conv_parameters(in_channels: int, filters: int, kernel: int, *, bias: bool = True) -> int:
    """Weights and biases of a square convolution: filters * (in_channels * kernel**2 + 1)."""
    _positive(in_channels=in_channels, filters=filters, kernel=kernel)
    return filters * (in_channels * kernel**2 + bias)


def linear_parameters(in_features: int, out_features: int) -> int:
    """Weights and biases of a fully connected layer: out_features * (in_features + 1)."""
    _positive(in_features=in_features, out_features=out_features)
    return out_features * (in_features + 1)


def batch_norm_parameters(channels: int) -> int:
    """Learned scale and shift of BatchNorm: two a channel (the running statistics are not learned)."""
    _positive(channels=channels)
    return 2 * channels


def conv_macs(in_channels: int, kernel: int, output: Sequence[int]) -> int:
    """Multiply-accumulates for one image: in_channels * kernel**2 for each number of ``output`` (filters, H, W)."""
    _positive(in_channels=in_channels, kernel=kernel, output=min(output))
    return in_channels * kernel**2 * prod(output)


def linear_macs(in_features: int, out_features: int) -> int:
    """Multiply-accumulates for one image: one for each weight."""
    _positive(in_features=in_features, out_features=out_features)
    return in_features * out_features


def activation_bytes(output: Sequence[int]) -> int:
    """Memory of a layer's output for one image, in 32-bit numbers."""
    _positive(output=min(output))
    return BYTES_PER_NUMBER * prod(output)


# -- by hand -----------------------------------------------------------------------------------------------------------


def pad(image: Image, padding: int) -> list[list[int]]:
    """``image`` (rows of equal length) within ``padding`` rows and columns of zeros."""
    if padding < 0:
        raise RecipeError(f"padding {padding}: must be at least 0")
    width = len(image[0]) + 2 * padding
    blank = [[0] * width for _ in range(padding)]
    return [*blank, *([0] * padding + list(row) + [0] * padding for row in image), *map(list, blank)]


def cross_correlate(image: Image, kernel: Image, *, padding: int = 0) -> list[list[int]]:
    """What a convolutional layer computes at stride 1: sums of products, the kernel *not* flipped."""
    height = window_output_size(len(image), kernel=len(kernel), stride=1, padding=padding)
    width = window_output_size(len(image[0]), kernel=len(kernel[0]), stride=1, padding=padding)
    padded = pad(image, padding)
    return [
        [
            sum(weight * padded[y + dy][x + dx] for dy, row in enumerate(kernel) for dx, weight in enumerate(row))
            for x in range(width)
        ]
        for y in range(height)
    ]


def max_pool(image: Image, kernel: int, stride: int) -> list[list[int]]:
    """The largest number of each window."""
    height = window_output_size(len(image), kernel=kernel, stride=stride)
    width = window_output_size(len(image[0]), kernel=kernel, stride=stride)
    return [
        [
            max(image[y * stride + dy][x * stride + dx] for dy in range(kernel) for dx in range(kernel))
            for x in range(width)
        ]
        for y in range(height)
    ]


def _positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise RecipeError(f"{name.replace('_', ' ')} {number}: must be at least 1")
