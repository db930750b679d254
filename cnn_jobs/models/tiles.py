"""The tiles of a convolution: a batch cut into them, their outputs put together, and both the other way round."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F


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
