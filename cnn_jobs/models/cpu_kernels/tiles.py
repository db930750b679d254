"""The tiles of a convolution: a batch cut into them, their outputs joined, both in reverse, and the tiles' basis.

Minimal filtering after Toom and Cook: in that basis a convolution is a product of numbers. m outputs of a kernel of r
values need m + r - 1 multiplications there, instead of m * r. Winograd's matrices are of this family; for any m and r
they are as Barabasz et al. give them in "Error Analysis and Improving the Accuracy of Winograd Convolution", 2020.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch.nn import functional as F

Matrix = list[list[Fraction]]
# Where the polynomials are evaluated, besides infinity; few and small, for the sake of rounding.
POINTS = tuple(map(Fraction, ("0", "1", "-1", "1/2", "-1/2", "2", "-2")))
# Which of them is 1: there a polynomial's value is the sum of its coefficients.
ONE = POINTS.index(Fraction(1))
LARGEST_TILE = len(POINTS) + 1


@dataclass(frozen=True)
class Side:
    """Tiles along one side of the images: ``count`` of them, each with ``outputs`` values computed from ``inputs``.

    Tiles are ``outputs`` apart. ``padding`` zeros precede the image, and follow it as far as the last tile extends. A
    tile overlaps at most the next one: inputs - outputs <= outputs.
    """

    count: int
    outputs: int
    inputs: int
    padding: int

    @property
    def over(self) -> int:
        """How many inputs a tile shares with the next one."""
        return self.inputs - self.outputs

    @property
    def blocks(self) -> int:
        """Tiles, and one block more where the last one extends beyond them."""
        return self.count + (self.over > 0)


def cut(images: torch.Tensor, rows: Side, columns: Side) -> torch.Tensor:
    """Images (N, H, W, C) to tiles (N * rows * columns, inputs, C), with the inputs of both sides in one dimension."""
    count, height, width, channels = images.shape
    padded = images.new_empty(count, rows.blocks * rows.outputs, columns.blocks * columns.outputs, channels)
    top, left, bottom, right = rows.padding, columns.padding, rows.padding + height, columns.padding + width
    for border in (padded[:, :top], padded[:, bottom:], padded[:, :, :left], padded[:, :, right:]):
        border.zero_()
    padded[:, top:bottom, left:right] = images
    n, y, x, c = padded.stride()
    shape = (count, rows.count, columns.count, rows.inputs, columns.inputs, channels)
    tiles = padded.as_strided(shape, (n, y * rows.outputs, x * columns.outputs, y, x, c))
    return tiles.reshape(-1, rows.inputs * columns.inputs, channels)


def add_up(tiles: torch.Tensor, rows: Side, columns: Side, size: tuple[int, int]) -> torch.Tensor:
    """The transpose of ``cut``: each pixel of (N, *size, C) is the sum over the tiles that contain it."""
    channels = tiles.shape[-1]
    by_block = tiles.view(-1, rows.count, columns.count, rows.inputs, columns.inputs, channels)
    by_block = by_block.transpose(2, 3)  # (N, rows, inputs, columns, inputs, C)
    total = tiles.new_empty(len(by_block), rows.blocks, rows.outputs, columns.blocks, columns.outputs, channels)
    total[:, rows.count :].zero_()
    total[:, :, :, columns.count :].zero_()

    def place(side: Side, beyond: int) -> tuple[slice, slice, slice]:
        """Blocks, the pixels in a block, and the pixels of a tile that belong there."""
        if beyond:
            return slice(1, side.count + 1), slice(side.over), slice(side.outputs, None)
        return slice(side.count), slice(side.outputs), slice(side.outputs)

    for beyond_y in range(1 + (rows.over > 0)):
        for beyond_x in range(1 + (columns.over > 0)):
            (y, inner_y, tile_y), (x, inner_x, tile_x) = place(rows, beyond_y), place(columns, beyond_x)
            part = by_block[:, :, tile_y, :, tile_x]
            if beyond_y or beyond_x:
                total[:, y, inner_y, x, inner_x] += part
            else:
                total[:, y, inner_y, x, inner_x] = part
    pixels = total.view(len(total), rows.blocks * rows.outputs, columns.blocks * columns.outputs, channels)
    top, left = rows.padding, columns.padding
    return pixels[:, top : top + size[0], left : left + size[1]].contiguous()


def join(tiles: torch.Tensor, rows: Side, columns: Side, size: tuple[int, int]) -> torch.Tensor:
    """Outputs by tile (N * rows * columns, outputs, K) to (N, *size, K), dense and not a view."""
    (m, n), filters = (rows.outputs, columns.outputs), tiles.shape[-1]
    blocks = tiles.view(-1, rows.count, columns.count, m, n, filters).transpose(2, 3)
    outputs = tiles.new_empty(len(blocks), rows.count * m, columns.count * n, filters)
    outputs.view(blocks.shape).copy_(blocks)
    if outputs.shape[1:3] == size:
        return outputs
    # Dense again: later layers are many times slower on a slice.
    return outputs[:, : size[0], : size[1]].clone(memory_format=torch.contiguous_format)


def split(gradient: torch.Tensor, rows: Side, columns: Side) -> torch.Tensor:
    """The transpose of ``join``: (N, H, W, K) to tiles; zeros where there is no output."""
    (m, n), (count, height, width, filters) = (rows.outputs, columns.outputs), gradient.shape
    missing = rows.count * m - height, columns.count * n - width
    if any(missing):
        gradient = F.pad(gradient, (0, 0, 0, missing[1], 0, missing[0]))
    blocks = gradient.reshape(count, rows.count, m, columns.count, n, filters).transpose(2, 3)
    return blocks.reshape(-1, m * n, filters)


@dataclass(frozen=True)
class Plan:
    """One convolution of stride 1 with a ``kernel`` x ``kernel`` kernel, from (N, C, *inputs) to (N, K, *outputs).

    ``left``: columns of the kernel that stay a convolution, with ``padding``; 1 for tiles of m x m.
    """

    kernel: int
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    rows: Side
    columns: Side
    output_columns: Side
    left: int
    padding: int

    @property
    def square(self) -> bool:
        """Whether tiles are m x m, and not m x 1."""
        return self.left == 1

    @property
    def one(self) -> int:
        """Index of the coefficient that is the value at 1 in every direction."""
        return ONE * self.columns.inputs + ONE if self.square else ONE

    def matrices(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """From the basis to a tile's outputs; to the basis from the kernel, and from a tile's inputs."""
        return _as_tensors(self.rows.outputs, self.kernel, self.square, dtype)


@lru_cache(maxsize=256)
def plan(kernel: int, padding: int, inputs: tuple[int, int], outputs: tuple[int, int], square: bool) -> Plan:
    """The plan with the best tiles. ``outputs`` may be fewer than there are, for tiles of m x 1 in height only."""
    m = best_tile(outputs, kernel, square)

    def in_tiles(side: int) -> Side:
        return Side(count=-(-side // m), outputs=m, inputs=m + kernel - 1, padding=padding)

    def untiled(side: int) -> Side:
        return Side(count=side, outputs=1, inputs=1, padding=0)

    rows = in_tiles(outputs[0])
    if square:
        columns = in_tiles(outputs[1])
        return Plan(kernel, inputs, outputs, rows, columns, columns, left=1, padding=0)
    return Plan(kernel, inputs, outputs, rows, untiled(inputs[1]), untiled(outputs[1]), left=kernel, padding=padding)


def best_tile(outputs: tuple[int, int], r: int, square: bool) -> int:
    """The side m of tiles with the lowest cost for outputs of that size and an r x r kernel: multiplications, and the
    change of the kernels' basis, which for a batch of 64 takes about as long as one more tile per image."""
    height, width = outputs

    def cost(m: int) -> int:
        rows, columns, a = -(-height // m), -(-width // m), m + r - 1
        return (rows * columns + 1) * a * a if square else (rows + 1) * a

    # m >= r - 1, because a tile overlaps at most the next one; kernels are therefore at most 5 x 5.
    return min(range(max(1, r - 1), LARGEST_TILE - r + 2), key=cost)


@lru_cache(maxsize=32)
def _as_tensors(m: int, r: int, square: bool, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The matrices for one dimension of a tile, or for both at once."""
    # The first call may be in an evaluation: tensors made in inference mode cannot be trained with later.
    with torch.inference_mode(False):
        lines = map(_tensor, matrices(m, r))
        output, kernel, inputs = ((torch.kron(each, each) if square else each).to(dtype) for each in lines)
    return output, kernel, inputs


def _tensor(matrix: Matrix) -> torch.Tensor:
    return torch.tensor([[float(value) for value in row] for row in matrix], dtype=torch.double)


# -- the basis ---------------------------------------------------------------------------------------------------------


def matrices(m: int, r: int) -> tuple[Matrix, Matrix, Matrix]:
    """(A, G, B) with A ((G g) * (B d)) = the m values of the correlation of d (a values) with g (r values), exactly.

    Polynomials are evaluated at a - 1 points and infinity, multiplied there, and interpolated; a = m + r - 1.
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


def _product(values: Iterable[Fraction]) -> Fraction:
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
