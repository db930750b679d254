"""Means, differences and what may be said of them.

Intervals and tests are Student's t, from scipy: "The probable error of a mean", Biometrika 6 (1908), for one group and
for pairs, and Welch, "The generalization of 'Student's' problem", Biometrika 34 (1947), for two groups without pairs.
They assume that what differs between seeds is about normal; with fewer than about ten seeds that cannot be checked.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Estimate:
    """Mean of ``n`` values, their standard deviation (n - 1), and the 95 % interval of the mean.

    With one value there is neither; with values that are all the same there is no interval: they show no spread.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of at least one finite value. Raises ``ValueError`` for none."""
    if not values:
        raise ValueError("no values to average")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(1, mean, None, None, None)
    sd = statistics.stdev(values)
    if sd <= 1e-12 * max(abs(mean), 1e-300):
        return Estimate(len(values), mean, 0.0, None, None)
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, loc=mean, scale=sd / math.sqrt(len(values)))
    return Estimate(len(values), mean, sd, float(low), float(high))


@dataclass(frozen=True)
class Difference:
    """What the first group has over the second, with its 95 % interval and the two-sided p-value.

    ``seeds``: those that both have, where the runs are compared in pairs; ``None``: Welch's test on all runs.
    ``p`` and the interval are ``None`` where no test is possible; ``why`` says then, in words.
    """

    effect: float
    low: float | None
    high: float | None
    p: float | None
    n: tuple[int, int]
    seeds: tuple[int, ...] | None
    why: str = ""


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """First minus second, values by seed: in pairs where at least two seeds are in both, else by Welch's test.

    Of runs compared in pairs those count whose seed both groups have. Raises ``ValueError`` for an empty group.
    """
    if not first or not second:
        raise ValueError("a group without values cannot be compared")
    common = tuple(sorted(first.keys() & second.keys()))
    if len(common) >= 2:
        return _paired([first[seed] - second[seed] for seed in common], common)
    n = (len(first), len(second))
    effect = statistics.fmean(first.values()) - statistics.fmean(second.values())
    if min(n) < 2:
        return Difference(effect, None, None, None, n, None, "one seed shows no spread")
    one, other = estimate(list(first.values())), estimate(list(second.values()))
    if one.low is None and other.low is None:
        return Difference(effect, None, None, None, n, None, "no spread between seeds")
    result = stats.ttest_ind(list(first.values()), list(second.values()), equal_var=False)
    interval = result.confidence_interval(CONFIDENCE)
    return Difference(effect, float(interval.low), float(interval.high), float(result.pvalue), n, None)


def _paired(differences: Sequence[float], seeds: tuple[int, ...]) -> Difference:
    found, n = estimate(differences), (len(seeds), len(seeds))
    if found.low is None:
        return Difference(found.mean, None, None, None, n, seeds, "no spread between seeds")
    p = float(stats.ttest_1samp(list(differences), 0.0).pvalue)
    return Difference(found.mean, found.low, found.high, p, n, seeds)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value corrected for their number, in the order given.

    Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979): of m values the k-th
    smallest is multiplied by m - k + 1; none becomes smaller than the one before it, or larger than 1. The chance that
    any of the claims "p < 0.05" is wrong is then at most 5 %, however the tests depend on each other.
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def verdict(found: Difference, corrected: float | None) -> str:
    """In words: is the first group better? Higher values are taken as better."""
    if corrected is not None and corrected < SIGNIFICANCE:
        return "better" if found.effect > 0 else "worse"
    smaller, larger = sorted(found.n)
    n = f"n = {larger}" if smaller == larger else f"n = {found.n[0]} and {found.n[1]}"
    return f"not separable with {n}"
