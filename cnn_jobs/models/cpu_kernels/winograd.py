"""Convolution with fewer multiplications, for training on a CPU: Winograd's minimal filtering.

The outputs are cut into tiles of m x m, or of m x 1. A tile of m x m needs a x a inputs, a = m + r - 1 for an r x r
kernel, and, in a basis in which convolution is a product of numbers, a * a multiplications a channel pair instead of
m * m * r * r: for m = 4 and r = 3, 36 instead of 144 (Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", CVPR 2016). Of tiles of m x 1 only the rows are in that basis, and along the columns it stays a convolution:
a * r multiplications instead of m * r * r, and a change of basis so much smaller that it pays with fewer channels.

Each number of the basis has weights of its own: together they are one convolution with as many groups. The same
function as ``nn.Conv2d`` but for rounding: about 1e-5 of the largest output instead of 5e-7.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cnn_jobs.models.cpu_kernels.tiles import Plan, Side, add_up, cut, join, plan, split


def takes_own_layers(images: torch.Tensor) -> bool:
    """Whether they would be faster for such a batch, and nobody asks for something else: on a CPU, in the batch's own
    precision. A model that is exported has torch's layers, for any machine."""
    return bool(
        images.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
    )


Network = TypeVar("Network", bound=nn.Module)
# With fewer the change of basis costs more than the multiplications that it saves (docs/performance.md).
LEAST_CHANNELS = {3: 64, 4: 64, 5: 32}  # by the kernel's side
LEAST_CHANNELS_FOR_SQUARES = 64


class WinogradConv2d(nn.Conv2d):
    """``nn.Conv2d`` of stride 1, computed by tiles where that is faster: on a CPU, in float32, with many channels.

    ``pooling``: kernel and stride of a pooling that alone reads the outputs. In training the last rows and columns that
    it leaves over are then not computed, where they are cut into tiles; otherwise all are, for whoever looks at this
    layer's activations.
    """

    pooling: tuple[int, int] | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, filters, H', W')."""
        plain = images.dtype != torch.float32 or not takes_own_layers(images)
        return super().forward(images) if plain else self._by_tiles(images)

    def _by_tiles(self, images: torch.Tensor) -> torch.Tensor:
        square = self.in_channels >= LEAST_CHANNELS_FOR_SQUARES
        (kernel, _), padding, (height, width) = self.kernel_size, int(self.padding[0]), images.shape[2:]
        rows, columns = (side + 2 * padding - kernel + 1 for side in (height, width))
        read = self._outputs_read(rows), self._outputs_read(columns) if square else columns
        by = plan(kernel, padding, (height, width), read, square)
        outputs: torch.Tensor = _Convolution.apply(images, self.weight, self.bias, by)
        return outputs.permute(0, 3, 1, 2)

    def _outputs_read(self, side: int) -> int:
        """Of ``side`` rows or columns of outputs, those that anybody reads."""
        if self.pooling is None or not self.training:
            return side
        kernel, stride = self.pooling
        read = (side - kernel) // stride * stride + kernel if side >= kernel else side
        # Else what is left of the input could reach beyond the last tile.
        return read if side - read <= int(self.padding[0]) else side


class _Convolution(torch.autograd.Function):
    """All in one function: between steps of its own autograd would copy what these leave as it lies.

    The bias is added to the number of the basis that is the value at 1: interpolation carries it to every output alike,
    and it is added so much less often than to the outputs.
    """

    @staticmethod
    def forward(
        ctx: Any, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, by: Plan
    ) -> torch.Tensor:
        """(N, C, *by.inputs) to (N, *by.outputs, K): no view, for whoever comes next may write into it."""
        to_output, to_kernel, to_input = by.matrices(images.dtype)
        numbers, filters = len(to_input), len(weight)
        kernels = _kernels(weight, to_kernel, by)
        biases = None
        if bias is not None:
            biases = bias.new_zeros(numbers, filters)
            biases[by.one] = bias
            biases = biases.flatten()
        inputs = _times(to_input, cut(images.permute(0, 2, 3, 1), by.rows, by.columns))
        inputs = _as_images(inputs, len(images), by, by.columns)
        products = F.conv2d(inputs, kernels, biases, padding=(0, by.padding), groups=numbers)
        ctx.save_for_backward(inputs, kernels)
        ctx.by, ctx.batch, ctx.shape = by, len(images), weight.shape
        outputs = _times(to_output, _by_number(products, numbers))
        return join(outputs, by.rows, by.output_columns, by.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of images, weight and bias."""
        (inputs, kernels), by = ctx.saved_tensors, ctx.by
        to_output, to_kernel, to_input = by.matrices(gradient.dtype)
        numbers = len(to_input)
        of_products = _times(to_output.t(), split(gradient, by.rows, by.output_columns))
        wants_images, wants_weight, wants_bias, _ = ctx.needs_input_grad
        # A gradient of 1x1 kernels is a matrix product, and as that much faster.
        wanted = (wants_images, wants_weight and not by.square, False)
        of_inputs, of_kernels, _ = torch.ops.aten.convolution_backward(
            _as_images(of_products, ctx.batch, by, by.output_columns), inputs, kernels, None,
            (1, 1), (0, by.padding), (1, 1), False, (0, 0), numbers, wanted,
        )  # fmt: skip
        if wants_weight and by.square:
            of_kernels = torch.bmm(of_products.permute(1, 2, 0), _by_number(inputs, numbers).transpose(0, 1))
            of_kernels = of_kernels.view_as(kernels)
        of_images = None
        if wants_images:
            of_tiles = _times(to_input.t(), _by_number(of_inputs, numbers))
            of_images = add_up(of_tiles, by.rows, by.columns, by.inputs).permute(0, 3, 1, 2)
        of_weight = _of_weight(of_kernels, to_kernel, ctx.shape, by) if wants_weight else None
        return of_images, of_weight, of_products[:, by.one].sum(0) if wants_bias else None, None


def _kernels(weight: torch.Tensor, to_kernel: torch.Tensor, by: Plan) -> torch.Tensor:
    """(K, C, r, r) to (numbers * K, C, 1, left), channels last."""
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
    """``matrix`` times each of the tiles."""
    return torch.bmm(matrix.expand(len(tiles), *matrix.shape), tiles)


def _as_images(tiles: torch.Tensor, batch: int, by: Plan, columns: Side) -> torch.Tensor:
    """(tiles, numbers, C) as (images, numbers * C, tile rows, tile columns), channels last.

    One image where kernels are 1x1, which is the same there: many small ones are slower.
    """
    images = 1 if by.square else batch
    return tiles.view(images, -1, columns.count, tiles.shape[1] * tiles.shape[2]).permute(0, 3, 1, 2)


def _by_number(images: torch.Tensor, numbers: int) -> torch.Tensor:
    """The other way round."""
    return images.permute(0, 2, 3, 1).reshape(-1, numbers, images.shape[1] // numbers)


def suits(channels: int, kernel: int, stride: int) -> bool:
    """Whether tiles pay for a convolution of so many input channels."""
    return stride == 1 and kernel in LEAST_CHANNELS and channels >= LEAST_CHANNELS[kernel]


def use_tiles(network: Network) -> Network:
    """``network`` itself, its convolutions computed by tiles where that pays."""
    for layer in network.modules():
        if type(layer) is nn.Conv2d and layer.groups == 1 and layer.dilation == (1, 1):
            (kernel, other), (stride, other_stride) = layer.kernel_size, layer.stride
            if kernel == other and stride == other_stride and suits(layer.in_channels, kernel, stride):
                layer.__class__ = WinogradConv2d
    return network
