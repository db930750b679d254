"""Convolutions with fewer multiplications, for training on a CPU: Winograd's minimal filtering.

The outputs are cut into tiles of m x m or m x 1. A tile of m x m needs a x a inputs, a = m + r - 1 for an r x r kernel.
In a basis in which convolution is an elementwise product it needs a * a multiplications per pair of channels instead of
m * m * r * r: 36 instead of 144 for m = 4 and r = 3 (Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", CVPR 2016). Tiles of m x 1 use that basis for rows only, and stay a convolution along columns: a * r
multiplications instead of m * r * r, and a cheaper change of basis, which pays with fewer channels.

Each coefficient of the basis has its own weights: together they are one grouped convolution. The function is that of
``nn.Conv2d`` except for rounding: errors of about 1e-5 of the largest output instead of 5e-7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cnn_jobs.models.cpu_kernels.tiles import Plan, Side, add_up, cut, join, plan, split

# With fewer, the change of basis costs more than the multiplications that it saves (docs/performance.md).
LEAST_CHANNELS = {3: 64, 4: 64, 5: 32}  # by the kernel's side
LEAST_CHANNELS_FOR_SQUARES = 64


def use_fast_convolutions(model: nn.Module) -> None:
    """Replaces the convolutions in ``model`` that tiles make faster on a CPU; the parameters stay the same tensors."""
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for place, (name, layer) in enumerate(children, start=1):
            if type(layer) is nn.Conv2d and _is_faster_by_tiles(layer):
                next_layers = [each for _, each in children[place:]] if isinstance(parent, nn.Sequential) else []
                setattr(parent, name, WinogradConv2d.replacing(layer, _pooling(next_layers)))


def _is_faster_by_tiles(layer: nn.Conv2d) -> bool:
    if (layer.stride, layer.dilation, layer.groups, layer.padding_mode) != ((1, 1), (1, 1), 1, "zeros"):
        return False
    (kernel, width), padding = layer.kernel_size, layer.padding
    if kernel != width or isinstance(padding, str) or padding[0] != padding[1]:
        return False
    return kernel in LEAST_CHANNELS and layer.in_channels >= LEAST_CHANNELS[kernel]


def _pooling(layers: Sequence[nn.Module]) -> tuple[int, int] | None:
    """Kernel and stride of the pooling that reads the outputs of the layer before ``layers``; ReLU may be between."""
    pool = next((each for each in layers if not isinstance(each, nn.ReLU)), None)
    if not isinstance(pool, nn.MaxPool2d | nn.AvgPool2d) or pool.padding or pool.ceil_mode:
        return None
    kernel, stride = pool.kernel_size, pool.stride
    square = isinstance(kernel, int) and isinstance(stride, int) and getattr(pool, "dilation", 1) == 1
    return (kernel, stride) if square else None  # type: ignore[return-value]


class WinogradConv2d(nn.Conv2d):
    """``nn.Conv2d`` of stride 1, by tiles on a CPU in float32; by torch elsewhere, and in an exported model.

    ``pooling``: kernel and stride of the pooling that alone reads the outputs. The last rows and columns that it does
    not read are then not computed in training.
    """

    pooling: tuple[int, int] | None = None

    @classmethod
    def replacing(cls, layer: nn.Conv2d, pooling: tuple[int, int] | None = None) -> WinogradConv2d:
        """The same convolution, with the parameters of ``layer``."""
        kernel, padding, bias = layer.kernel_size[0], int(layer.padding[0]), layer.bias is not None
        own = cls(layer.in_channels, layer.out_channels, kernel, padding=padding, bias=bias, device="meta")
        own.weight, own.bias, own.pooling = layer.weight, layer.bias, pooling
        return own.train(layer.training)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, filters, H', W')."""
        on_cpu = images.device.type == "cpu" and images.dtype == torch.float32
        if not on_cpu or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
            return super().forward(images)
        return self._by_tiles(images)

    def _by_tiles(self, images: torch.Tensor) -> torch.Tensor:
        square = self.in_channels >= LEAST_CHANNELS_FOR_SQUARES
        (kernel, _), padding, (height, width) = self.kernel_size, int(self.padding[0]), images.shape[2:]
        rows, columns = (side + 2 * padding - kernel + 1 for side in (height, width))
        read = self._outputs_read(rows), self._outputs_read(columns) if square else columns
        by = plan(kernel, padding, (height, width), read, square)
        outputs: torch.Tensor = _Convolution.apply(images, self.weight, self.bias, by)
        return outputs.permute(0, 3, 1, 2)

    def _outputs_read(self, side: int) -> int:
        """How many of ``side`` rows or columns of outputs are read."""
        if self.pooling is None or not self.training:
            return side
        kernel, stride = self.pooling
        read = (side - kernel) // stride * stride + kernel if side >= kernel else side
        # Otherwise the rest of the input could extend beyond the last tile.
        return read if side - read <= int(self.padding[0]) else side


class _Convolution(torch.autograd.Function):
    """A single autograd function: between several, autograd would copy the intermediate tensors.

    The bias is added to the coefficient that is the value at 1: interpolation carries it to every output alike, at a
    fraction of the additions.
    """

    @staticmethod
    def forward(
        ctx: Any, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, by: Plan
    ) -> torch.Tensor:
        """(N, C, *by.inputs) to (N, *by.outputs, K); not a view, because the next layer may write into it."""
        to_output, to_kernel, to_input = by.matrices(images.dtype)
        coefficients, filters = len(to_input), len(weight)
        kernels = _kernels(weight, to_kernel, by)
        biases = None
        if bias is not None:
            biases = bias.new_zeros(coefficients, filters)
            biases[by.one] = bias
            biases = biases.flatten()
        inputs = _times(to_input, cut(images.permute(0, 2, 3, 1), by.rows, by.columns))
        inputs = _as_images(inputs, len(images), by, by.columns)
        products = F.conv2d(inputs, kernels, biases, padding=(0, by.padding), groups=coefficients)
        ctx.save_for_backward(inputs, kernels)
        ctx.by, ctx.batch, ctx.shape = by, len(images), weight.shape
        outputs = _times(to_output, _by_coefficient(products, coefficients))
        return join(outputs, by.rows, by.output_columns, by.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of images, weight and bias."""
        (inputs, kernels), by = ctx.saved_tensors, ctx.by
        to_output, to_kernel, to_input = by.matrices(gradient.dtype)
        coefficients = len(to_input)
        of_products = _times(to_output.t(), split(gradient, by.rows, by.output_columns))
        wants_images, wants_weight, wants_bias, _ = ctx.needs_input_grad
        # The gradient of 1x1 kernels is a matrix product, which is much faster.
        wanted = (wants_images, wants_weight and not by.square, False)
        of_inputs, of_kernels, _ = torch.ops.aten.convolution_backward(
            _as_images(of_products, ctx.batch, by, by.output_columns), inputs, kernels, None,
            (1, 1), (0, by.padding), (1, 1), False, (0, 0), coefficients, wanted,
        )  # fmt: skip
        if wants_weight and by.square:
            of_kernels = torch.bmm(of_products.permute(1, 2, 0), _by_coefficient(inputs, coefficients).transpose(0, 1))
            of_kernels = of_kernels.view_as(kernels)
        of_images = None
        if wants_images:
            of_tiles = _times(to_input.t(), _by_coefficient(of_inputs, coefficients))
            of_images = add_up(of_tiles, by.rows, by.columns, by.inputs).permute(0, 3, 1, 2)
        of_weight = _of_weight(of_kernels, to_kernel, ctx.shape, by) if wants_weight else None
        return of_images, of_weight, of_products[:, by.one].sum(0) if wants_bias else None, None


def _kernels(weight: torch.Tensor, to_kernel: torch.Tensor, by: Plan) -> torch.Tensor:
    """(K, C, r, r) to (coefficients * K, C, 1, left), channels last."""
    filters, channels, r, _ = weight.shape
    values = weight.reshape(filters, channels, r, -1, by.left).permute(2, 3, 0, 4, 1)
    kernels = to_kernel @ values.reshape(to_kernel.shape[1], -1)
    return kernels.view(-1, 1, by.left, channels).permute(0, 3, 1, 2)


def _of_weight(of_kernels: torch.Tensor, to_kernel: torch.Tensor, shape: torch.Size, by: Plan) -> torch.Tensor:
    """The transpose of ``_kernels``: (K, C, r, r)."""
    filters, channels, r, _ = shape
    values = to_kernel.t() @ of_kernels.permute(0, 2, 3, 1).reshape(len(to_kernel), -1)
    return values.view(r, -1, filters, by.left, channels).permute(2, 4, 0, 1, 3).reshape(shape)


def _times(matrix: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
    """``matrix`` times each tile."""
    return torch.bmm(matrix.expand(len(tiles), *matrix.shape), tiles)


def _as_images(tiles: torch.Tensor, batch: int, by: Plan, columns: Side) -> torch.Tensor:
    """(tiles, coefficients, C) as (images, coefficients * C, tile rows, tile columns), channels last.

    For 1x1 kernels as one image, which is equivalent: many small ones are slower.
    """
    images = 1 if by.square else batch
    return tiles.view(images, -1, columns.count, tiles.shape[1] * tiles.shape[2]).permute(0, 3, 1, 2)


def _by_coefficient(images: torch.Tensor, coefficients: int) -> torch.Tensor:
    """The inverse of ``_as_images``, by coefficient."""
    return images.permute(0, 2, 3, 1).reshape(-1, coefficients, images.shape[1] // coefficients)
