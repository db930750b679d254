"""Sizes and parameter counts of convolutional networks, in plain integers.

The formulas are those of torch's own documentation of ``Conv2d``, ``MaxPool2d``, ``BatchNorm2d`` and ``Linear``
(dilation 1, floor); the tests hold them against torch.
"""

from __future__ import annotations

from cnn_jobs.errors import RecipeError


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


def conv_parameters(in_channels: int, filters: int, kernel: int) -> int:
    """Weights and biases of a square convolution: filters * (in_channels * kernel**2 + 1)."""
    return filters * (in_channels * kernel**2 + 1)


def linear_parameters(in_features: int, out_features: int) -> int:
    """Weights and biases of a fully connected layer: out_features * (in_features + 1)."""
    return out_features * (in_features + 1)


def batch_norm_parameters(channels: int) -> int:
    """Learned scale and shift of BatchNorm: two a channel (the running statistics are not learned)."""
    return 2 * channels
