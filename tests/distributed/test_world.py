"""The number of processes, and which of them this one is."""

from __future__ import annotations

import pytest

from cnn_jobs.distributed.world import World, default_size, world_of
from cnn_jobs.errors import RecipeError, UserError

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "JOB_COMPLETION_INDEX")
NAMES += ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def env(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_single_process_reads_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    env(monkeypatch, RANK="7", JOB_COMPLETION_INDEX="3")
    assert world_of(default_size()) == World()
    assert not World().distributed
    assert World().name == ""


def test_pod_of_an_indexed_job(monkeypatch: pytest.MonkeyPatch) -> None:
    env(monkeypatch, JOB_COMPLETION_INDEX="1", MASTER_ADDR="task2-ddp-0.task2-ddp", MASTER_PORT="29500")
    world = world_of(2, 30)
    assert (world.rank, world.size, world.local_rank, world.local_size) == (1, 2, 0, 1)
    assert (world.address, world.port, world.timeout_s) == ("task2-ddp-0.task2-ddp", 29500, 30)
    assert world.name == "rank 1"
    assert not world.agent_store


def test_process_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    env(monkeypatch, WORLD_SIZE="4", RANK="3", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2", MASTER_ADDR="a", MASTER_PORT="1")
    env(monkeypatch, TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="2", JOB_COMPLETION_INDEX="0")
    world = world_of(default_size())
    assert (world.rank, world.local_rank, world.local_size, world.restart) == (3, 1, 2, 2)
    assert world.agent_store


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "neither RANK nor JOB_COMPLETION_INDEX"),
        ({"RANK": "0"}, "MASTER_ADDR is not set"),
        ({"RANK": "2", "MASTER_ADDR": "a"}, "RANK is 2, but must be below the world size, 2"),
        ({"RANK": "-1", "MASTER_ADDR": "a"}, "RANK is '-1', but must be a whole number"),
        ({"RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "x"}, "MASTER_PORT is 'x'"),
        ({"RANK": "0", "MASTER_ADDR": "a", "WORLD_SIZE": "3"}, "--world-size is 2, but WORLD_SIZE is 3"),
    ],
)
def test_variables_that_do_not_identify_the_process_are_refused(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env(monkeypatch, **variables)
    with pytest.raises(UserError, match=message) as caught:
        world_of(2)
    assert "\n" not in str(caught.value)


def test_batch_must_be_divisible() -> None:
    World(size=4).check_batch(64)
    with pytest.raises(RecipeError, match="batch_size 66 cannot be divided equally among 4 processes"):
        World(size=4).check_batch(66)
