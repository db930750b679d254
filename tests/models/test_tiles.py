"""Tiles: their content, the transpose of each function, and the matrices of their basis, in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_jobs.models.cpu_kernels.tiles import LARGEST_TILE, ONE, POINTS, Side, add_up, cut, join, matrices, split

INPUTS, OUTPUTS = st.integers(1, 6), st.integers(1, 11)


def side(outputs: int, over: int, padding: int, whole: int) -> Side:
    """Tiles for ``whole`` outputs."""
    return Side(count=-(-whole // outputs), outputs=outputs, inputs=outputs + min(over, outputs), padding=padding)


sides = st.builds(side, st.integers(1, 5), st.integers(0, 4), st.integers(0, 2), st.integers(1, 9))


def numbers(*shape: int) -> torch.Tensor:
    return torch.arange(1.0, 1.0 + torch.Size(shape).numel(), dtype=torch.double).view(shape).sin()


@settings(max_examples=60)
@given(rows=sides, columns=sides, data=st.data())
def test_tiles_are_cut_from_the_padded_image(rows: Side, columns: Side, data: st.DataObject) -> None:
    height, width = (
        data.draw(st.integers(1, max(1, each.blocks * each.outputs - each.padding))) for each in (rows, columns)
    )
    if height + rows.padding > rows.blocks * rows.outputs or width + columns.padding > columns.blocks * columns.outputs:
        return
    pictures = numbers(2, height, width, 3)
    tiles = cut(pictures, rows, columns).view(2, rows.count, columns.count, rows.inputs, columns.inputs, 3)
    n, y, x = (data.draw(st.integers(0, last - 1)) for last in (2, rows.count, columns.count))
    i, j = (data.draw(st.integers(0, last - 1)) for last in (rows.inputs, columns.inputs))
    row, column = y * rows.outputs + i - rows.padding, x * columns.outputs + j - columns.padding
    inside = 0 <= row < height and 0 <= column < width
    assert tiles[n, y, x, i, j].tolist() == (pictures[n, row, column].tolist() if inside else [0.0] * 3)
    # <cut(p), t> = <p, add_up(t)>
    others = numbers(*tiles.shape).cos().view(-1, rows.inputs * columns.inputs, 3)
    added = add_up(others, rows, columns, (height, width))
    assert added.shape == pictures.shape
    torch.testing.assert_close((tiles.flatten() * others.flatten()).sum(), (pictures * added).sum())


@settings(max_examples=60)
@given(rows=sides, columns=sides, data=st.data())
def test_tiles_are_joined_to_the_image(rows: Side, columns: Side, data: st.DataObject) -> None:
    height, width = (data.draw(st.integers(1, each.count * each.outputs)) for each in (rows, columns))
    tiles = numbers(2 * rows.count * columns.count, rows.outputs * columns.outputs, 3)
    outputs = join(tiles, rows, columns, (height, width))
    assert outputs.shape == (2, height, width, 3)
    assert outputs.is_contiguous()
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    (y, i), (x, j) = divmod(row, rows.outputs), divmod(column, columns.outputs)
    tile = tiles[(rows.count + y) * columns.count + x]
    assert outputs[1, row, column].tolist() == tile[i * columns.outputs + j].tolist()
    others = numbers(*outputs.shape).cos()
    torch.testing.assert_close((outputs * others).sum(), (tiles * split(others, rows, columns)).sum())


# -- the basis ---------------------------------------------------------------------------------------------------------

FRACTIONS = st.fractions(min_value=-9, max_value=9, max_denominator=7)


def times(matrix: list[list[Fraction]], vector: list[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


@pytest.mark.parametrize("r", range(2, 6))
@pytest.mark.parametrize("m", range(1, LARGEST_TILE))
@settings(max_examples=5)
@given(data=st.data())
def test_matrices_give_the_exact_correlation(m: int, r: int, data: st.DataObject) -> None:
    if m + r - 1 > LARGEST_TILE:
        return
    kernel = data.draw(st.lists(FRACTIONS, min_size=r, max_size=r))
    pixels = data.draw(st.lists(FRACTIONS, min_size=m + r - 1, max_size=m + r - 1))
    to_output, to_kernel, to_input = matrices(m, r)
    products = [a * b for a, b in zip(times(to_kernel, kernel), times(to_input, pixels), strict=True)]
    expected = [sum((pixels[i + j] * kernel[j] for j in range(r)), Fraction(0)) for i in range(m)]
    assert times(to_output, products) == expected


def test_constant_added_to_the_value_at_one_is_added_to_every_output() -> None:
    assert POINTS[ONE] == 1
    to_output, _, _ = matrices(4, 5)
    assert [row[ONE] for row in to_output] == [1] * 4
