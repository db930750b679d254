"""Planned comparisons, their correction, and how training ended."""

from __future__ import annotations

import pytest

from cnn_jobs.report.analysis import compare, overfitting
from cnn_jobs.report.groups import group_runs
from cnn_jobs.report.statistics import difference
from cnn_jobs.tracking.run_reader import Curve
from tests.helpers.made_runs import made_run


def test_planned_comparisons_are_corrected_together() -> None:
    names = ("task3-arch1", "task3-arch2", "task3c-avgpool", "task3d-batchnorm", "task3d-plain", "task3e")
    found = compare(group_runs([made_run(name, seed) for name in names for seed in range(3)])[0][0])
    assert [each.plan.question for each in found] == ["3b", "3c, 3d", "3c", "3c", "3e", "3e"]
    for each in found:
        assert each.tested == difference(
            each.first.values("last/test_accuracy"), each.second.values("last/test_accuracy")
        )
        assert each.corrected is not None
        assert each.corrected >= (each.tested.p or 1)
    smallest = min(found, key=lambda each: each.tested.p or 1)
    assert smallest.corrected == pytest.approx(min(1, 6 * (smallest.tested.p or 0)))


@pytest.mark.parametrize(
    ("step", "words"), [(-0.1, "still falling"), (0.1, "rising"), (0.0, "neither clearly falling nor rising")]
)
def test_validation_loss_at_the_end(step: float, words: str) -> None:
    curves = [Curve((10, 20, 30), (1.0, 1.0 + step, 1.0 + 2 * step + noise)) for noise in (0.001, -0.001, 0.002)]
    runs = [made_run("task2", seed, val_loss=curve) for seed, curve in enumerate(curves)]
    ending = overfitting(group_runs(runs)[0][0].groups[0])
    assert ending.at_the_end == words
    assert ending.slope is not None
    assert ending.slope.mean == pytest.approx(100 * step + 0.1 / 3, abs=1e-9)


@pytest.mark.parametrize(
    ("validations", "seeds", "words"), [(2, 2, "too few validations"), (4, 1, "one seed"), (4, 2, "no spread")]
)
def test_validation_loss_at_the_end_is_not_tested(validations: int, seeds: int, words: str) -> None:
    curve = Curve(tuple(range(1, validations + 1)), (1.0,) * validations)
    runs = [made_run("task2", seed, val_loss=curve) for seed in range(seeds)]
    assert overfitting(group_runs(runs)[0][0].groups[0]).at_the_end == f"not tested: {words}"
