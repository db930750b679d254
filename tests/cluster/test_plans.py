from __future__ import annotations

import dataclasses

import pytest

from cnn_jobs.cluster import plans
from cnn_jobs.errors import UserError
from cnn_jobs.tasks import TASKS


def test_a_new_task_gets_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    new = dataclasses.replace(TASKS["task3e"], name="task5", title="A new one")
    monkeypatch.setitem(TASKS, "task5", new)
    before = {plan.name for plan in plans.all_plans()}
    monkeypatch.delitem(TASKS, "task5")
    assert before - {plan.name for plan in plans.all_plans()} == {"task5", "task5-seeds"}


def test_jobs_are_chosen_by_name() -> None:
    assert [plan.name for plan in plans.choose(["report", "task2-seeds"])] == ["report", "task2-seeds"]
    assert plans.choose([]) == plans.all_plans()
    with pytest.raises(UserError, match=r"'task9' is no Job; the Jobs are prepare-data, doctor, task2, .*report$"):
        plans.choose(["task2", "task9"])
