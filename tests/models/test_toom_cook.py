"""The matrices of minimal filtering, in fractions: exact."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_jobs.models.cpu_kernels.toom_cook import LARGEST_TILE, ONE, POINTS, matrices

NUMBERS = st.fractions(min_value=-9, max_value=9, max_denominator=7)


def times(matrix: list[list[Fraction]], vector: list[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


@pytest.mark.parametrize("r", range(2, 6))
@pytest.mark.parametrize("m", range(1, LARGEST_TILE))
@settings(max_examples=5)
@given(data=st.data())
def test_the_matrices_give_the_correlation_exactly(m: int, r: int, data: st.DataObject) -> None:
    if m + r - 1 > LARGEST_TILE:
        return
    kernel = data.draw(st.lists(NUMBERS, min_size=r, max_size=r))
    pixels = data.draw(st.lists(NUMBERS, min_size=m + r - 1, max_size=m + r - 1))
    to_output, to_kernel, to_input = matrices(m, r)
    products = [a * b for a, b in zip(times(to_kernel, kernel), times(to_input, pixels), strict=True)]
    expected = [sum((pixels[i + j] * kernel[j] for j in range(r)), Fraction(0)) for i in range(m)]
    assert times(to_output, products) == expected


def test_a_constant_that_is_added_to_the_value_at_one_is_added_to_every_output() -> None:
    assert POINTS[ONE] == 1
    to_output, _, _ = matrices(4, 5)
    assert [row[ONE] for row in to_output] == [1] * 4
