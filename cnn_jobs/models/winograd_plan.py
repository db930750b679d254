"""How a convolution is computed by tiles: which tiles, and the matrices to their basis and back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from cnn_jobs.models.tiles import Side
from cnn_jobs.models.toom_cook import LARGEST_TILE, ONE, Matrix, matrices

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
