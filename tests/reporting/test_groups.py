"""Which runs count, and with which others."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cnn_jobs.errors import UserError
from cnn_jobs.report.comparisons import compare, overfitting
from cnn_jobs.report.document import clean
from cnn_jobs.report.groups import pair_of, put_together
from cnn_jobs.report.statistics import difference
from cnn_jobs.tracking.run_reader import Curve, thinned
from tests.reporting.made_runs import made_run, metrics_of, params_of, tags_of

WITHOUT = {name: value for name, value in metrics_of("task2", 0).items() if name != "best/val_loss"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": "RUNNING"}, "it did not finish"),
        ({"status": "FAILED", "tags": tags_of("task2", **{"cnn_jobs.reason": "no memory"})}, "not finish: no memory"),
        ({"tags": tags_of("task2", **{"cnn_jobs.state": "interrupted"})}, "it did not finish"),
        ({"tags": tags_of("task9")}, "its task 'task9' is none of this version's"),
        ({"tags": {}}, "its task '' is none"),
        ({"tags": tags_of("task2", **{"cnn_jobs.group_hash": ""})}, "no tag cnn_jobs.group_hash"),
        ({"params": {}}, "its param seed is '', not a number"),
        ({"metrics": WITHOUT}, "it has no best/val_loss"),
        ({"metrics": metrics_of("task2", 0) | {"last/test_loss": math.nan}}, "its last/test_loss is nan"),
        ({"metrics": metrics_of("task2", 0) | {"last/test_loss": 1.797e308}}, "its last/test_loss is 1.797e"),
    ],
)
def test_a_run_that_does_not_count_is_listed_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    sections, aside = put_together([made_run("task2", 0, **changes), made_run("task2", 1)])
    assert [run.seed for group in sections[0].groups for run in group.runs] == [1]
    assert len(aside) == 1
    assert reason in aside[0].reason


def test_of_one_recipe_and_seed_the_oldest_counts() -> None:
    first, again = made_run("task2", 0, run_id="a" * 32), made_run("task2", 0, run_id="b" * 32, start_ms=2 * 10**12)
    sections, aside = put_together([again, first])
    assert [run.run_id for run in sections[0].groups[0].runs] == ["a" * 32]
    assert "repeats run aaaaaaaa" in aside[0].reason


def test_drawn_and_real_images_are_never_in_one_section() -> None:
    drawn = tags_of("task2", **{"cnn_jobs.data": "shapes", "cnn_jobs.data_digest": "e" * 64})
    drawn["cnn_jobs.synthetic_data"] = "true"
    sections, _ = put_together([made_run("task2", 0, tags=drawn, run_id="e" * 32), made_run("task2", 0)])
    assert [(each.name, each.synthetic) for each in sections] == [("photographs", False), ("shapes", True)]


def test_two_recipes_of_one_task_are_named_by_what_differs() -> None:
    other = tags_of("task2", **{"cnn_jobs.group_hash": "f" * 64})
    runs = [
        made_run("task2", 0),
        made_run("task2", 0, run_id="o" * 32, tags=other, params=params_of("task2", 0, lr=0.5)),
    ]
    groups = put_together(runs)[0][0].groups
    assert [group.label for group in groups] == ["task2", "task2 (lr=0.5)"]


def test_the_same_params_with_another_hash_are_named_by_it() -> None:
    other = tags_of("task2", **{"cnn_jobs.group_hash": "f" * 64})
    groups = put_together([made_run("task2", 0), made_run("task2", 0, run_id="o" * 32, tags=other)])[0][0].groups
    assert [group.label for group in groups] == ["task2 [ffffffff]", "task2 [task2-ha]"]


def test_all_planned_comparisons_are_corrected_together() -> None:
    names = ("task3-arch1", "task3-arch2", "task3c-avgpool", "task3d-batchnorm", "task3d-plain", "task3e")
    section = put_together([made_run(name, seed) for name in names for seed in range(3)])[0][0]
    found = compare(section)
    assert [each.plan.question for each in found] == ["3b", "3c, 3d", "3c", "3c", "3e", "3e"]
    for each in found:
        assert each.tested == difference(
            each.first.values("last/test_accuracy"), each.second.values("last/test_accuracy")
        )
        assert each.corrected is not None
        assert each.corrected >= (each.tested.p or 1)
    smallest = min(found, key=lambda each: each.tested.p or 1)
    assert smallest.corrected == pytest.approx(min(1, 6 * (smallest.tested.p or 0)))


def test_groups_are_named_by_task_label_or_hash_and_unknown_ones_list_those_there_are() -> None:
    sections, _ = put_together([made_run(name, seed) for name in ("task2", "task3e") for seed in range(2)])
    assert [group.task for group in pair_of(sections, "task2", "task3e-hash")[0][1:]] == ["task2", "task3e"]
    with pytest.raises(UserError, match="no data set has finished runs of both; there are photographs: task2, task3e"):
        pair_of(sections, "task2", "nothing")
    with pytest.raises(UserError, match="names task2 twice"):
        pair_of(sections, "task2", "task2-hash")


@pytest.mark.parametrize(
    ("step", "words"), [(-0.1, "still falling"), (0.1, "rising"), (0.0, "neither clearly falling nor rising")]
)
def test_what_the_validation_loss_does_at_the_end(step: float, words: str) -> None:
    def run(seed: int) -> Any:
        wiggle = (0.001, -0.001, 0.002)[seed]
        return made_run("task2", seed, val_loss=Curve((10, 20, 30), (1.0, 1.0 + step, 1.0 + 2 * step + wiggle)))

    ending = overfitting(put_together([run(seed) for seed in range(3)])[0][0].groups[0])
    assert ending.at_the_end == words
    assert ending.slope is not None
    assert ending.slope.mean == pytest.approx(100 * step + 0.1 / 3, abs=1e-9)


def test_training_losses_are_means_between_validations() -> None:
    losses = Curve(tuple(range(1, 8)), (1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 100.0))
    assert thinned(losses, (2, 6)) == Curve((2, 6), (2.0, 8.0))
    assert thinned(Curve(), (2, 6)) == Curve()


def test_text_from_elsewhere_becomes_one_harmless_line() -> None:
    assert clean("a\n\tb \x1b[31m\u202egpj\x00") == "a b [31mgpj"
    assert clean("x" * 500) == "x" * 79 + "…"
