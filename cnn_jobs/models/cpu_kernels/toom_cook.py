"""Minimal filtering: convolution in a basis in which it is a product of numbers, after Toom and Cook.

m outputs of a kernel of r values need m + r - 1 multiplications there, instead of m * r. Winograd's matrices are of
this family; for any m and r they are as Barabasz et al. give them in "Error Analysis and Improving the Accuracy of
Winograd Convolution", 2020.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

Matrix = list[list[Fraction]]
# Where the polynomials are evaluated, besides infinity; few and small, for the sake of rounding.
POINTS = tuple(map(Fraction, ("0", "1", "-1", "1/2", "-1/2", "2", "-2")))
# Which of them is 1: there a polynomial's value is the sum of its coefficients.
ONE = POINTS.index(Fraction(1))
LARGEST_TILE = len(POINTS) + 1


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
