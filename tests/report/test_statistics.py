"""Coverage of the intervals, and how often verdicts are wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cnn_jobs.report.statistics import Difference, difference, estimate, holm, verdict

EXPERIMENTS = 2000
TEST_IMAGES = 10_000


def test_interval_is_students() -> None:
    # Student's own data of sleep gained by ten patients (1908, table of additional hours, the difference of two drugs).
    found = estimate([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    assert found.n == 10
    assert found.mean == pytest.approx(1.58)
    assert found.sd == pytest.approx(1.229995, abs=1e-6)
    assert found.interval == pytest.approx((0.7001142, 2.4598858), abs=1e-6)


def test_one_value_and_equal_values_have_no_interval() -> None:
    for values, sd, why in (([0.5], None, "one seed"), ([0.5, 0.5], 0.0, "no spread")):
        found = estimate(values)
        assert (found.sd, found.interval, found.why, found.interval_in_percent) == (sd, None, why, "-")
    assert estimate([0.75, 0.76]).interval_in_percent == "69.15 to 81.85"
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_runs_are_paired_by_common_seeds() -> None:
    first = {0: 1.2, 1: 2.4, 2: 1.3, 9: 100.0}
    second = {0: 1.0, 1: 2.0, 2: 1.2, 5: -7.0}
    found = difference(first, second)
    expected = stats.ttest_rel([1.2, 2.4, 1.3], [1.0, 2.0, 1.2])
    assert found.seeds == (0, 1, 2)
    assert found.effect == pytest.approx(0.7 / 3)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_welchs_test_without_common_seeds() -> None:
    found = difference({0: 1.0, 1: 2.0, 2: 4.0}, {5: 3.0, 6: 9.0})
    expected = stats.ttest_ind([1.0, 2.0, 4.0], [3.0, 9.0], equal_var=False)
    assert found.seeds is None
    assert found.n == (3, 2)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_one_seed_is_not_tested() -> None:
    found = difference({0: 1.0}, {0: 0.5, 1: 0.4})
    assert (found.p, found.why) == (None, "one seed shows no spread")
    assert verdict(found, None) == "not separable with n = 1 and 2"
    assert difference({0: 1.0, 1: 2.0}, {0: 0.5, 1: 1.5}).p is None


@pytest.mark.parametrize(
    ("effect", "corrected", "words"),
    [(0.1, 0.049, "better"), (-0.1, 0.049, "worse"), (0.1, 0.05, "not separable with n = 3")],
)
def test_verdict_is_by_the_corrected_p_value(effect: float, corrected: float, words: str) -> None:
    assert verdict(Difference(effect, (3, 3), (0, 1, 2), (0.0, 0.0), 0.001), corrected) == words


def test_holm_in_a_published_example() -> None:
    # Wikipedia's "Holm-Bonferroni method", example: 0.01, 0.04, 0.03, 0.005 become 0.03, 0.06, 0.06, 0.02.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_keeps_the_order_and_never_decreases(values: list[float]) -> None:
    corrected = holm(values)
    assert all(p <= c <= 1 for p, c in zip(values, corrected, strict=True))
    assert corrected[values.index(min(values))] == pytest.approx(min(1, len(values) * min(values)))
    in_order = [corrected[index] for index in sorted(range(len(values)), key=values.__getitem__)]
    assert in_order == sorted(in_order)


def accuracies(dice: np.random.Generator, n: int, truth: float, shared: np.ndarray) -> dict[int, float]:
    """Measured accuracies of n seeds: the true one varies with the seed, and is measured on 10,000 test images."""
    own = np.clip(truth + shared + 0.004 * dice.standard_normal(n), 0, 1)
    return dict(enumerate(dice.binomial(TEST_IMAGES, own) / TEST_IMAGES))


def test_intervals_cover_the_truth() -> None:
    dice = np.random.default_rng(0)
    mean_in, effect_in = 0, 0
    for experiment in range(EXPERIMENTS):
        n = (3, 5, 10)[experiment % 3]
        shared = 0.003 * dice.standard_normal(n)
        one, other = accuracies(dice, n, 0.77, 0 * shared), accuracies(dice, n, 0.75, shared)
        paired = accuracies(dice, n, 0.77, shared)
        mean, effect = estimate(list(one.values())), difference(paired, other)
        assert mean.interval
        assert effect.interval
        mean_in += mean.interval[0] <= 0.77 <= mean.interval[1]
        effect_in += effect.interval[0] <= 0.02 <= effect.interval[1]
    assert 0.93 <= mean_in / EXPERIMENTS <= 0.97
    assert 0.93 <= effect_in / EXPERIMENTS <= 0.97


def false_verdicts(dice: np.random.Generator, tests: int, *, corrected: bool) -> float:
    """Share of experiments without any difference in which some verdict is "better" or "worse"."""
    wrong = 0
    for _ in range(EXPERIMENTS):
        groups = [accuracies(dice, 5, 0.77, np.zeros(5)) for _ in range(tests + 1)]
        found = [difference(groups[0], other) for other in groups[1:]]
        values = [each.p for each in found if each.p is not None]
        values = holm(values) if corrected else values
        wrong += any(not verdict(each, p).startswith("not") for each, p in zip(found, values, strict=True))
    return wrong / EXPERIMENTS


def test_better_is_rare_without_a_difference() -> None:
    dice = np.random.default_rng(1)
    better = sum(
        verdict(found, found.p) == "better"
        for found in (
            difference(accuracies(dice, 3, 0.77, np.zeros(3)), accuracies(dice, 3, 0.77, np.zeros(3)))
            for _ in range(EXPERIMENTS)
        )
    )
    assert 0.005 < better / EXPERIMENTS <= 0.05
    assert false_verdicts(dice, 6, corrected=True) <= 0.05


def test_without_holm_the_same_simulation_is_wrong_too_often() -> None:
    assert false_verdicts(np.random.default_rng(2), 6, corrected=False) > 0.10
