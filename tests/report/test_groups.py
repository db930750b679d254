"""Which runs count, and how they are grouped."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cnn_jobs.errors import UserError
from cnn_jobs.report.groups import find_pairs, group_runs
from tests.helpers.made_runs import made_run, metrics_of, params_of, tags_of

INCOMPLETE = {name: value for name, value in metrics_of("task2", 0).items() if name != "best/val_loss"}
OTHER_RECIPE = tags_of("task2", **{"cnn_jobs.group_hash": "f" * 64})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": "RUNNING"}, "it did not finish"),
        ({"status": "FAILED", "tags": tags_of("task2", **{"cnn_jobs.reason": "no memory"})}, "not finish: no memory"),
        ({"tags": tags_of("task2", **{"cnn_jobs.state": "interrupted"})}, "it did not finish"),
        ({"tags": tags_of("task9")}, "this version has no task 'task9'"),
        ({"tags": {}}, "this version has no task ''"),
        ({"tags": tags_of("task2", **{"cnn_jobs.group_hash": ""})}, "no tag cnn_jobs.group_hash"),
        ({"params": {}}, "its param seed is '', not a number"),
        ({"metrics": INCOMPLETE}, "it has no best/val_loss"),
        ({"metrics": metrics_of("task2", 0) | {"last/test_loss": math.nan}}, "its last/test_loss is nan"),
        ({"metrics": metrics_of("task2", 0) | {"last/test_loss": 1.797e308}}, "its last/test_loss is 1.797e"),
    ],
)
def test_runs_that_do_not_count_are_set_aside_with_a_reason(changes: dict[str, Any], reason: str) -> None:
    sections, aside = group_runs([made_run("task2", 0, **changes), made_run("task2", 1)])
    assert [run.seed for run in sections[0].runs] == [1]
    assert len(aside) == 1
    assert reason in aside[0].reason


def test_oldest_of_repeated_runs_counts() -> None:
    first, again = made_run("task2", 0, run_id="a" * 32), made_run("task2", 0, run_id="b" * 32, start_ms=2 * 10**12)
    sections, aside = group_runs([again, first])
    assert [run.run_id for run in sections[0].runs] == ["a" * 32]
    assert "repeats run aaaaaaaa" in aside[0].reason


def test_synthetic_and_real_images_are_in_different_sections() -> None:
    drawn = {"cnn_jobs.data": "shapes", "cnn_jobs.data_digest": "e" * 64, "cnn_jobs.synthetic_data": "true"}
    synthetic = made_run("task2", 0, tags=tags_of("task2", **drawn), run_id="e" * 32)
    sections, _ = group_runs([synthetic, made_run("task2", 0)])
    assert [(each.name, each.synthetic) for each in sections] == [("photographs", False), ("shapes", True)]


def test_recipes_of_one_task_are_named_by_their_differences() -> None:
    other = made_run("task2", 0, run_id="o" * 32, tags=OTHER_RECIPE, params=params_of("task2", 0, lr=0.5))
    groups = group_runs([made_run("task2", 0), other])[0][0].groups
    assert [group.label for group in groups] == ["task2", "task2 (lr=0.5)"]


def test_equal_params_with_another_hash_are_named_by_the_hash() -> None:
    other = made_run("task2", 0, run_id="o" * 32, tags=OTHER_RECIPE)
    groups = group_runs([made_run("task2", 0), other])[0][0].groups
    assert [group.label for group in groups] == ["task2 [ffffffff]", "task2 [task2-ha]"]


def test_pairs_are_found_by_task_label_or_hash() -> None:
    sections, _ = group_runs([made_run(name, seed) for name in ("task2", "task3e") for seed in range(2)])
    assert [group.task for group in find_pairs(sections, "task2", "task3e-hash")[0][1:]] == ["task2", "task3e"]
    with pytest.raises(UserError, match="no data set has finished runs of both; there are photographs: task2, task3e"):
        find_pairs(sections, "task2", "nothing")
    with pytest.raises(UserError, match="names task2 twice"):
        find_pairs(sections, "task2", "task2-hash")
