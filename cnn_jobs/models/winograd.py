"""Convolution with fewer multiplications, for training on a CPU: Winograd's minimal filtering.

The output is cut into tiles of m x m. One tile needs a x a input pixels, a = m + r - 1 for an r x r kernel, and, in a
basis in which convolution is a product of numbers, a * a multiplications a channel pair instead of m * m * r * r: for
m = 4 and r = 3, 36 instead of 144. Changing the basis is three multiplications by constant matrices (Lavin and Gray,
"Fast Algorithms for Convolutional Neural Networks", CVPR 2016; the matrices for any m and r are Toom's and Cook's, as
Barabasz et al. give them in "Error Analysis and Improving the Accuracy of Winograd Convolution", 2020).

The same function as ``nn.Conv2d`` but for rounding: about 1e-5 of the largest output instead of 5e-7.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)
Matrix = list[list[Fraction]]
# Where the polynomials are evaluated, besides infinity; few and small, for the sake of rounding.
# The second is 1: see _Products.
POINTS = tuple(map(Fraction, ("0", "1", "-1", "1/2", "-1/2", "2", "-2")))
LARGEST_TILE = len(POINTS) + 1
# So that a tile reaches no further than into the next one: m >= r - 1.
LARGEST_KERNEL = 5
# With fewer the change of basis costs more than the multiplications that it saves (docs/performance.md).
LEAST_CHANNELS = 64


class WinogradConv2d(nn.Conv2d):
    """``nn.Conv2d`` of stride 1, computed by tiles where that is faster: on a CPU, in float32, with many channels.

    ``pooling``: kernel and stride of a pooling that alone reads the outputs. In training the last rows and columns that
    it leaves over are then not computed; otherwise all are, for whoever looks at this layer's activations.
    """

    pooling: tuple[int, int] | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, filters, H', W')."""
        plain = (
            images.device.type != "cpu"
            or images.dtype != torch.float32
            or torch.is_autocast_enabled("cpu")
            or torch.compiler.is_compiling()  # an exported model has the plain layer, for any machine
        )
        return super().forward(images) if plain else self._by_tiles(images)

    def _by_tiles(self, images: torch.Tensor) -> torch.Tensor:
        (r, _), padding, count = self.kernel_size, int(self.padding[0]), len(images)
        height, width = (self._outputs_read(side + 2 * padding - r + 1) for side in images.shape[2:])
        m = best_tile(height, width, r)
        a = m + r - 1
        rows, columns = -(-height // m), -(-width // m)
        to_output, to_kernel, to_input = _squared(m, r, images.dtype)

        # The basis' number first, so that each of the a * a products below is one plain matrix multiplication.
        tiles: torch.Tensor = _Tiles.apply(images, padding, m, a, rows, columns)  # (a * a, tiles * C)
        inputs = (to_input @ tiles).view(a * a, -1, self.in_channels)
        kernels = to_kernel @ self.weight.permute(2, 3, 0, 1).reshape(r * r, -1)
        kernels = kernels.view(a * a, self.out_channels, self.in_channels)
        products: torch.Tensor = _Products.apply(inputs, kernels, self.bias, a + 1)
        outputs = (to_output @ products.view(a * a, -1)).view(m, m, count, rows, columns, self.out_channels)
        outputs = outputs.permute(2, 3, 0, 4, 1, 5).reshape(count, rows * m, columns * m, self.out_channels)
        if outputs.shape[1:3] != (height, width):
            # Dense again: layers behind it are many times slower on a cut-out.
            outputs = outputs[:, :height, :width].contiguous()
        return outputs.permute(0, 3, 1, 2)

    def _outputs_read(self, side: int) -> int:
        """Of ``side`` rows or columns of outputs, those that anybody reads."""
        if self.pooling is None or not self.training:
            return side
        kernel, stride = self.pooling
        read = (side - kernel) // stride * stride + kernel if side >= kernel else side
        # Else what is left of the input could reach beyond the last tile.
        return read if side - read <= int(self.padding[0]) else side


class _Tiles(torch.autograd.Function):
    """Overlapping a x a tiles, m apart, of a padded batch; backwards, each pixel's sum over the tiles it is in."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, padding: int, m: int, a: int, rows: int, columns: int) -> torch.Tensor:
        """(N, C, H, W) to (a * a, N * rows * columns * C)."""
        ctx.shape, ctx.numbers = images.shape, (padding, m, a, rows, columns)
        count, channels, height, width = images.shape
        padded = images.new_empty(count, (rows + 1) * m, (columns + 1) * m, channels)
        bottom, right = padding + height, padding + width
        for border in (padded[:, :padding], padded[:, bottom:], padded[:, :, :padding], padded[:, :, right:]):
            border.zero_()
        padded[:, padding:bottom, padding:right] = images.permute(0, 2, 3, 1)
        n, y, x, c = padded.stride()
        shape, strides = (a, a, count, rows, columns, channels), (y, x, n, y * m, x * m, c)
        return padded.as_strided(shape, strides).reshape(a * a, -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """As ``forward``, the other way round."""
        padding, m, a, rows, columns = ctx.numbers
        count, channels, height, width = ctx.shape
        # A tile reaches over its own m x m pixels and the first of the next ones (a - m <= m).
        tiles = gradient.view(a, a, count, rows, columns, channels).permute(2, 3, 0, 4, 1, 5)
        total = gradient.new_empty(count, rows + 1, m, columns + 1, m, channels)
        total[:, rows].zero_()
        total[:, :, :, columns].zero_()
        over = a - m
        total[:, :rows, :, :columns] = tiles[:, :, :m, :, :m]
        total[:, 1:, :over, :columns] += tiles[:, :, m:, :, :m]
        total[:, :rows, :, 1:, :over] += tiles[:, :, :m, :, m:]
        total[:, 1:, :over, 1:, :over] += tiles[:, :, m:, :, m:]
        pixels = total.view(count, (rows + 1) * m, (columns + 1) * m, channels)
        pixels = pixels[:, padding : padding + height, padding : padding + width].contiguous()
        return pixels.permute(0, 3, 1, 2), None, None, None, None, None


class _Products(torch.autograd.Function):
    """(B, T, C) times the transposed (B, K, C): (B, T, K). torch's own gradient of the second is one copy more.

    The ``bias`` (K,) is added to product number ``one``, which is the value of all polynomials at 1 in both directions:
    interpolation carries it to every output alike, and it is added a * a times less often than to the outputs.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, kernels: torch.Tensor, bias: torch.Tensor | None, one: int
    ) -> torch.Tensor:
        """Batched matrix products."""
        ctx.save_for_backward(inputs, kernels)
        ctx.one = one if bias is not None else None
        products = torch.bmm(inputs, kernels.transpose(1, 2))
        if bias is not None:
            products[one] += bias
        return products

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of inputs, kernels and bias."""
        inputs, kernels = ctx.saved_tensors
        bias = None if ctx.one is None else gradient[ctx.one].sum(0)
        return torch.bmm(gradient, kernels), torch.bmm(gradient.transpose(1, 2), inputs), bias, None


def suits(channels: int, kernel: int, stride: int) -> bool:
    """Whether tiles pay for a convolution of so many input channels."""
    return stride == 1 and 3 <= kernel <= LARGEST_KERNEL and channels >= LEAST_CHANNELS


def use_tiles(network: Network) -> Network:
    """``network`` itself, its convolutions computed by tiles where that pays."""
    for layer in network.modules():
        if type(layer) is nn.Conv2d and layer.groups == 1 and layer.dilation == (1, 1):
            (kernel, other), (stride, other_stride) = layer.kernel_size, layer.stride
            if kernel == other and stride == other_stride and suits(layer.in_channels, kernel, stride):
                layer.__class__ = WinogradConv2d
    return network


def best_tile(height: int, width: int, r: int) -> int:
    """The tile side m that costs least for an output of that size and an r x r kernel: multiplications, and the kernels
    in the tiles' basis, which for a batch of 64 take about as long as one more tile an image."""
    sides = range(max(1, r - 1), LARGEST_TILE - r + 2)
    return min(sides, key=lambda m: (-(-height // m) * -(-width // m) + 1) * (m + r - 1) ** 2)


@lru_cache(maxsize=32)
def _squared(m: int, r: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The three matrices for tiles in two dimensions, each acting on rows and columns at once."""
    # An evaluation may be the first to ask: what is made in inference mode cannot be trained with later.
    with torch.inference_mode(False):
        output, kernel, image = (torch.kron(each, each).to(dtype) for each in map(_tensor, matrices(m, r)))
    return output, kernel, image


def matrices(m: int, r: int) -> tuple[Matrix, Matrix, Matrix]:
    """(A, G, B) with A ((G g) * (B d)) = the m values of the correlation of d (a values) with g (r values), exactly.

    Polynomials are evaluated at a - 1 points and infinity, multiplied there, and interpolated.
    """
    a = m + r - 1
    points = POINTS[: a - 1]

    def powers(count: int) -> Matrix:
        infinity = [Fraction(0)] * (count - 1) + [Fraction(1)]
        return [*([point**power for power in range(count)] for point in points), infinity]

    scale = [_product(point - other for other in points if other != point) for point in points] + [Fraction(1)]
    kernel = [[value / factor for value in row] for row, factor in zip(powers(r), scale, strict=True)]
    interpolation = _inverse(powers(a))
    image = [[interpolation[j][i] * scale[i] for j in range(a)] for i in range(a)]
    return [list(column) for column in zip(*powers(m), strict=True)], kernel, image


def _product(values: Any) -> Fraction:
    result = Fraction(1)
    for value in values:
        result *= value
    return result


def _inverse(matrix: Matrix) -> Matrix:
    """By Gauss and Jordan, exactly."""
    size = len(matrix)
    rows = [row + [Fraction(int(i == j)) for j in range(size)] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(i for i in range(column, size) if rows[i][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for i in range(size):
            if i != column:
                factor = rows[i][column]
                rows[i] = [value - factor * top for value, top in zip(rows[i], rows[column], strict=True)]
    return [row[size:] for row in rows]


def _tensor(matrix: Matrix) -> torch.Tensor:
    return torch.tensor([[float(value) for value in row] for row in matrix], dtype=torch.double)
