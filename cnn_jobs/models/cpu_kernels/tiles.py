"""The tiles of a convolution: a batch cut into them, their outputs put together, and both the other way round."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn import functional as F

from cnn_jobs.models.cpu_kernels.toom_cook import LARGEST_TILE, ONE, Matrix, matrices


@dataclass(frozen=True)
class Side:
    """One side of the pictures, in tiles: ``count`` of them, each of ``outputs`` values that are made of ``inputs``.

    Tiles stand ``outputs`` apart. ``padding`` zeros come before the picture, and behind it as many as the last tile
    asks for. A tile reaches no further than into the next one: inputs - outputs <= outputs.
    """

    count: int
    outputs: int
    inputs: int
    padding: int

    @property
    def over(self) -> int:
        """How many inputs a tile has beyond its own ``outputs``: the first of the next one's."""
        return self.inputs - self.outputs

    @property
    def blocks(self) -> int:
        """Tiles, and where the last one reaches further, what it reaches into."""
        return self.count + (self.over > 0)


def cut(pictures: torch.Tensor, rows: Side, columns: Side) -> torch.Tensor:
    """(N, H, W, C) to tiles (N * rows * columns, inputs, C), where ``inputs`` are those of both sides."""
    count, height, width, channels = pictures.shape
    padded = pictures.new_empty(count, rows.blocks * rows.outputs, columns.blocks * columns.outputs, channels)
    top, left, bottom, right = rows.padding, columns.padding, rows.padding + height, columns.padding + width
    for border in (padded[:, :top], padded[:, bottom:], padded[:, :, :left], padded[:, :, right:]):
        border.zero_()
    padded[:, top:bottom, left:right] = pictures
    n, y, x, c = padded.stride()
    shape = (count, rows.count, columns.count, rows.inputs, columns.inputs, channels)
    tiles = padded.as_strided(shape, (n, y * rows.outputs, x * columns.outputs, y, x, c))
    return tiles.reshape(-1, rows.inputs * columns.inputs, channels)


def add_up(tiles: torch.Tensor, rows: Side, columns: Side, size: tuple[int, int]) -> torch.Tensor:
    """The transpose of ``cut``: to each pixel of (N, *size, C) its sum over the tiles that it is in."""
    channels = tiles.shape[-1]
    by_block = tiles.view(-1, rows.count, columns.count, rows.inputs, columns.inputs, channels)
    by_block = by_block.transpose(2, 3)  # (N, rows, inputs, columns, inputs, C)
    total = tiles.new_empty(len(by_block), rows.blocks, rows.outputs, columns.blocks, columns.outputs, channels)
    total[:, rows.count :].zero_()
    total[:, :, :, columns.count :].zero_()

    def place(side: Side, beyond: int) -> tuple[slice, slice, slice]:
        """Blocks, the pixels in a block, and the pixels of a tile that go there."""
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
    """Outputs by tile (N * rows * columns, outputs, K) to (N, *size, K), dense, and no view of anything."""
    (m, n), filters = (rows.outputs, columns.outputs), tiles.shape[-1]
    blocks = tiles.view(-1, rows.count, columns.count, m, n, filters).transpose(2, 3)
    outputs = tiles.new_empty(len(blocks), rows.count * m, columns.count * n, filters)
    outputs.view(blocks.shape).copy_(blocks)
    if outputs.shape[1:3] == size:
        return outputs
    # Dense again: layers behind it are many times slower on a cut-out.
    return outputs[:, : size[0], : size[1]].clone(memory_format=torch.contiguous_format)


def split(gradient: torch.Tensor, rows: Side, columns: Side) -> torch.Tensor:
    """The transpose of ``join``: of (N, H, W, K) by tile; what no output is made of has none."""
    (m, n), (count, height, width, filters) = (rows.outputs, columns.outputs), gradient.shape
    missing = rows.count * m - height, columns.count * n - width
    if any(missing):
        gradient = F.pad(gradient, (0, 0, 0, missing[1], 0, missing[0]))
    blocks = gradient.reshape(count, rows.count, m, columns.count, n, filters).transpose(2, 3)
    return blocks.reshape(-1, m * n, filters)


# So that a tile reaches no further than into the next one: m >= r - 1.
LARGEST_KERNEL = (LARGEST_TILE + 2) // 2


@dataclass(frozen=True)
class Plan:
    """One convolution of stride 1 with a ``kernel`` x ``kernel`` kernel, from (N, C, *inputs) to (N, K, *outputs).

    ``left`` columns of the kernel are not in the basis, 1 where all are; ``padding`` is what they ask for.
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
        """Tiles of m x m, and not of m x 1."""
        return self.left == 1

    @property
    def one(self) -> int:
        """The number of the basis that is the polynomials' value at 1 in every direction."""
        return ONE * self.columns.inputs + ONE if self.square else ONE

    def matrices(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """From the basis to a tile's outputs, and into it from the kernel and from a tile's inputs."""
        return _as_tensors(self.rows.outputs, self.kernel, self.square, dtype)


@lru_cache(maxsize=256)
def plan(kernel: int, padding: int, inputs: tuple[int, int], outputs: tuple[int, int], square: bool) -> Plan:
    """With the best tiles. ``outputs`` may be less than there are; of tiles of m x 1, in height only."""
    m = best_tile(outputs, kernel, square)

    def in_tiles(side: int) -> Side:
        return Side(count=-(-side // m), outputs=m, inputs=m + kernel - 1, padding=padding)

    def as_it_is(side: int) -> Side:
        return Side(count=side, outputs=1, inputs=1, padding=0)

    rows = in_tiles(outputs[0])
    if square:
        columns = in_tiles(outputs[1])
        return Plan(kernel, inputs, outputs, rows, columns, columns, left=1, padding=0)
    return Plan(kernel, inputs, outputs, rows, as_it_is(inputs[1]), as_it_is(outputs[1]), left=kernel, padding=padding)


def best_tile(outputs: tuple[int, int], r: int, square: bool) -> int:
    """The tile side m that costs least for outputs of that size and an r x r kernel: multiplications, and the kernels
    in the tiles' basis, which for a batch of 64 take about as long as one more tile an image."""
    height, width = outputs

    def cost(m: int) -> int:
        rows, columns, a = -(-height // m), -(-width // m), m + r - 1
        return (rows * columns + 1) * a * a if square else (rows + 1) * a

    return min(range(max(1, r - 1), LARGEST_TILE - r + 2), key=cost)


@lru_cache(maxsize=32)
def _as_tensors(m: int, r: int, square: bool, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The matrices for one line of a tile, or for a square one, acting on rows and columns at once."""
    # An evaluation may be the first to ask: what is made in inference mode cannot be trained with later.
    with torch.inference_mode(False):
        lines = map(_tensor, matrices(m, r))
        output, kernel, inputs = ((torch.kron(each, each) if square else each).to(dtype) for each in lines)
    return output, kernel, inputs


def _tensor(matrix: Matrix) -> torch.Tensor:
    return torch.tensor([[float(value) for value in row] for row in matrix], dtype=torch.double)
