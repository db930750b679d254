"""Sizes of windows, outputs and receptive fields, in plain integers.

The formulas are those in torch's documentation of ``Conv2d`` and ``MaxPool2d``, at dilation 1 and rounded down; the
tests compare them with torch. Every function raises ``RecipeError`` for numbers that no layer can have.
"""

from __future__ import annotations

from collections.abc import Sequence

from cnn_jobs.errors import RecipeError


def window_output_size(size: int, *, kernel: int, stride: int, padding: int = 0) -> int:
    """Output size of a convolution or pooling along one side: floor((size + 2 padding - kernel) / stride) + 1.

    Raises ``RecipeError`` if no window fits.
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
    """Padding that keeps the size at stride 1: (kernel - 1) / 2. Raises ``RecipeError`` for an even kernel."""
    _positive(kernel=kernel)
    if kernel % 2 == 0:
        raise RecipeError(f"kernel {kernel} is even: no equal padding on both sides keeps the size; use an odd kernel")
    return (kernel - 1) // 2


def kernels_between(size: int, output: int, *, stride: int = 1, padding: int = 0) -> range:
    """The kernels that reduce ``size`` pixels to ``output``: one at stride 1, otherwise up to ``stride``.

    ``window_output_size`` solved for the kernel: output <= (size + 2 padding - kernel) / stride + 1 < output + 1.
    """
    _positive(size=size, output=output, stride=stride)
    if padding < 0:
        raise RecipeError(f"padding {padding}: must be at least 0")
    largest = size + 2 * padding - (output - 1) * stride
    kernels = range(max(1, largest - stride + 1), largest + 1)
    if not kernels:
        raise RecipeError(
            f"no kernel reduces {size} pixels to {output} at stride {stride} with padding {padding}: "
            f"the smallest, 1, gives {window_output_size(size, kernel=1, stride=stride, padding=padding)}"
        )
    return kernels


def receptive_field(windows: Sequence[tuple[int, int]]) -> int:
    """Side, in pixels of the image, of the square that one output depends on.

    ``windows``: (kernel, stride) of the layers, in order. Each adds (kernel - 1) times the product of the strides
    before it (Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019). The
    square may extend beyond the image, into the padding.
    """
    field, jump = 1, 1
    for kernel, stride in windows:
        _positive(kernel=kernel, stride=stride)
        field += (kernel - 1) * jump
        jump *= stride
    return field


def _positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise RecipeError(f"{name.replace('_', ' ')} {number}: must be at least 1")
