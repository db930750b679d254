from __future__ import annotations

import dataclasses

import pytest

from cnn_jobs import __version__
from cnn_jobs.cluster import plans
from cnn_jobs.cluster.settings import Settings
from cnn_jobs.errors import UserError
from cnn_jobs.tasks import TASKS
from tests.cluster.job_rules import LABEL

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "image",
    [
        "cnn-jobs:0.1.0",
        "registry.example/cnn-jobs:0.1.0",
        "registry.example:5000/team/cnn_jobs:v1-cuda",
        "localhost:5000/cnn-jobs:1",
        f"ghcr.io/some-one/cnn-jobs:0.1.0@{DIGEST}",
        "cnn-jobs:latest-1",
    ],
)
def test_an_image_with_a_tag_is_taken(image: str) -> None:
    assert Settings(image=image).image == image


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("cnn-jobs", "has no tag"),
        ("registry.example:5000/cnn-jobs", "has no tag"),
        (f"cnn-jobs@{DIGEST}", "has no tag"),
        ("cnn-jobs:latest", "names 'latest'"),
        (f"registry.example/cnn-jobs:latest@{DIGEST}", "names 'latest'"),
        ("", "must be NAME:TAG"),
        ("cnn-jobs:", "must be NAME:TAG"),
        ("Cnn-Jobs:1", "must be NAME:TAG"),
        ("cnn-jobs:0.1.0 ", "must be NAME:TAG"),
        ("cnn-jobs:0.1.0\n", "must be NAME:TAG"),
        ("http://registry/cnn-jobs:1", "must be NAME:TAG"),
        ("cnn-jobs:.1", "must be NAME:TAG"),
        ("cnn-jobs:" + "1" * 129, "must be NAME:TAG"),
        ("cnn-jobs:1@sha256:abc", "must be NAME:TAG"),
        ("cnn-jobs:é", "must be NAME:TAG"),
    ],
)
def test_an_image_without_a_tag_that_stays_is_refused(image: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as error:
        Settings(image=image)
    assert str(error.value).startswith(f"--image is '{image}', ")
    assert str(error.value).endswith(f"registry.example/cnn-jobs:{__version__}")


@pytest.mark.parametrize("name", ["", "Cnn", "a_b", "-a", "a-", "a" * 64, "a.b"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"--namespace is '{name}', but must be"):
        Settings(namespace=name)
    if name:
        with pytest.raises(UserError, match=f"--state-claim is '{name}', but must be"):
            Settings(state_claim=name)


def test_a_name_at_the_limits_is_taken() -> None:
    assert Settings(namespace="a", state_claim="a" * 63).state_claim == "a" * 63


def test_fewer_gpus_than_none_are_refused() -> None:
    with pytest.raises(UserError, match="--gpu is -1"):
        Settings(gpus=-1)


def test_the_version_can_be_a_label_and_a_tag() -> None:
    assert LABEL.fullmatch(__version__)
    assert Settings().image == f"cnn-jobs:{__version__}"


def test_a_new_task_has_its_jobs_without_further_ado(monkeypatch: pytest.MonkeyPatch) -> None:
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
