"""Means, differences, their intervals and tests, and the verdicts that these allow.

Intervals and tests are Student's t, by scipy: "The probable error of a mean", Biometrika 6 (1908), for one group and
for pairs, and Welch, "The generalization of 'Student's' problem", Biometrika 34 (1947), for two groups without pairs.
They assume that values vary about normally between seeds; with fewer than about ten seeds this cannot be checked.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Estimate:
    """Mean of ``n`` values, their standard deviation (n - 1), and the 95 % interval of the mean.

    One value has neither; equal values have no interval, for they show no spread.
    """

    n: int
    mean: float
    sd: float | None
    interval: tuple[float, float] | None

    @property
    def why(self) -> str:
        """Why there is no interval."""
        return "one seed" if self.n == 1 else "no spread"

    @property
    def interval_in_percent(self) -> str:
        """The interval of a fraction: ``75.90 to 76.74``, or ``-``."""
        return f"{100 * self.interval[0]:.2f} to {100 * self.interval[1]:.2f}" if self.interval else "-"


def estimate(values: Collection[float]) -> Estimate:
    """Mean and interval of finite values. Raises ``ValueError`` if there are none."""
    if not values:
        raise ValueError("no values to average")
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Estimate(n, mean, None, None)
    sd = statistics.stdev(values)
    if sd <= 1e-12 * max(abs(mean), 1e-300):
        return Estimate(n, mean, 0.0, None)
    low, high = stats.t.interval(CONFIDENCE, n - 1, loc=mean, scale=sd / math.sqrt(n))
    return Estimate(n, mean, sd, (float(low), float(high)))


@dataclass(frozen=True)
class Difference:
    """First group minus second, with the 95 % interval and the two-sided p-value.

    ``seeds``: those in both groups, for a paired test; ``None`` for Welch's test on all runs. ``interval`` and ``p``
    are ``None`` if no test is possible; ``why`` is the reason.
    """

    effect: float
    n: tuple[int, int]
    seeds: tuple[int, ...] | None
    interval: tuple[float, float] | None = None
    p: float | None = None
    why: str = ""


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """First minus second, values by seed: paired if at least two seeds are in both groups, else by Welch's test.

    A paired test leaves out seeds that only one group has. Raises ``ValueError`` for an empty group.
    """
    if not first or not second:
        raise ValueError("a group without values cannot be compared")
    seeds = tuple(sorted(first.keys() & second.keys()))
    if len(seeds) >= 2:
        differences = [first[seed] - second[seed] for seed in seeds]
        found, n = estimate(differences), (len(seeds), len(seeds))
        if not found.interval:
            return Difference(found.mean, n, seeds, why="no spread between seeds")
        p = float(stats.ttest_1samp(differences, 0.0).pvalue)
        return Difference(found.mean, n, seeds, found.interval, p)
    n = (len(first), len(second))
    effect = statistics.fmean(first.values()) - statistics.fmean(second.values())
    if min(n) < 2:
        return Difference(effect, n, None, why="one seed shows no spread")
    if not estimate(first.values()).interval and not estimate(second.values()).interval:
        return Difference(effect, n, None, why="no spread between seeds")
    result = stats.ttest_ind(list(first.values()), list(second.values()), equal_var=False)
    interval = result.confidence_interval(CONFIDENCE)
    return Difference(effect, n, None, (float(interval.low), float(interval.high)), float(result.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, in the given order.

    Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979): the k-th smallest of m
    values is multiplied by m - k + 1; none becomes smaller than the one before it, or larger than 1. The probability
    that any of the claims "p < 0.05" is wrong is then at most 5 %, however the tests depend on each other.
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def verdict(found: Difference, corrected: float | None) -> str:
    """Whether the first group is ``better``, ``worse`` or ``not separable``; higher values are better."""
    if corrected is not None and corrected < SIGNIFICANCE:
        return "better" if found.effect > 0 else "worse"
    first, second = found.n
    return f"not separable with n = {first}" if first == second else f"not separable with n = {first} and {second}"
