"""Two processes train one run: real ones on loopback, killed, stopped and restarted, with a real MLflow server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.local_server.server import free_port
from tests.helpers.datasets import striped_dataset
from tests.helpers.forkserver import Child, Completed
from tests.helpers.survival import Lab, Outcome, compare
from tests.helpers.tracking import only_run, rows
from tests.helpers.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

# 36 of 40 images train: 3 steps an epoch, 12 in all, validated after 1, 3, 4, 6 and so on.
SMALL = ("--epochs", 4, "--batch-size", 12, "--early-stop-count", 0, "--threads", 1)
STEPS = 12
# A process that has lost another one ends within this.
LONGEST_STOP_S = 60.0
Hook = tuple[str, list[Any]]
PLAIN: Hook = ("cheap_outputs", [])


def start(
    lab: Lab,
    key: str,
    rank: int,
    port: int,
    *more: object,
    hook: Hook = PLAIN,
    task: str = "task2",
    data: Path | None = None,
    uri: str = "",
) -> Child:
    """Starts one of two processes, each with its own disk."""
    environment = {
        "MLFLOW_TRACKING_URI": uri or lab.uri,
        "CNN_JOBS_STATE_DIR": str(lab.folder / f"state-{key}-{rank}"),
        "CNN_JOBS_JOB_UID": key,
        "CNN_JOBS_WORLD_SIZE": "2",
        "JOB_COMPLETION_INDEX": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    arguments = ["train", task, "--data", data or lab.data, "--experiment", task, *SMALL, *more]
    return lab.start_child(arguments, environment, *hook)


def start_pair(lab: Lab, key: str, *more: object, hooks: Mapping[int, Hook] = {}, **settings: Any) -> list[Child]:
    """Starts both processes of a Job of two indexes."""
    port = free_port()
    return [start(lab, key, rank, port, *more, hook=hooks.get(rank, PLAIN), **settings) for rank in (0, 1)]


def wait(children: list[Child]) -> list[Completed]:
    return [child.wait(120) for child in children]


def train_pair(lab: Lab, key: str, *more: object, codes: tuple[int, int] = (0, 0), **settings: Any) -> list[Completed]:
    """Runs both processes to their ends, with the expected exit codes."""
    completed = wait(start_pair(lab, key, *more, **settings))
    assert tuple(each.code for each in completed) == codes, [each.stderr for each in completed]
    return completed


def train_single(lab: Lab, key: str, **environment: str) -> Outcome:
    """The same training in one process."""
    arguments = ["train", "task2", "--data", lab.data, "--experiment", "task2", *SMALL]
    done = lab.start_child(arguments, lab.environment(key, **environment), *PLAIN).wait()
    assert done.code == 0, done.stderr
    return lab.outcome("task2", key)


@pytest.fixture(scope="module")
def reference(lab: Lab) -> Outcome:
    """Two undisturbed processes."""
    train_pair(lab, "two")
    return lab.outcome("task2", "two")


def test_two_processes_agree_with_one_within_the_stated_tolerance(lab: Lab, reference: Outcome) -> None:
    """docs/distributed.md: 1e-6 of a loss, 1e-6 of a weight, after these twelve steps."""
    single = train_single(lab, "single")
    ours, theirs = (
        {(name, step): value for name, step, value in outcome.rows if "loss" in name} for outcome in (reference, single)
    )
    assert ours.keys() == theirs.keys()
    assert len(ours) > STEPS
    assert max(abs(ours[key] - theirs[key]) for key in ours) < 1e-6
    for name, tensor in reference.state["model"].items():
        assert float((tensor - single.state["model"][name]).abs().max()) < 1e-6
    assert reference.tags["cnn_jobs.world_size"] == "2"
    assert reference.tags["cnn_jobs.backend"] == "gloo"
    assert reference.tags["cnn_jobs.recipe_hash"] == single.tags["cnn_jobs.recipe_hash"]
    assert "cnn_jobs.world_size" not in single.tags


def test_only_rank_0_records(lab: Lab, reference: Outcome) -> None:
    assert reference.status == "FINISHED"
    assert reference.runs == 1
    assert reference.tags["cnn_jobs.run_key"] == "two"  # the Job's UID, without the index
    assert not (lab.folder / "state-two-1").exists()
    assert reference.losses() == dict(enumerate(reference.state["train_losses"], start=1))


def test_finished_run_is_finished_for_both(lab: Lab, reference: Outcome) -> None:
    assert "finished before; nothing was trained" in train_pair(lab, "two")[0].stdout
    assert compare(reference, lab.outcome("task2", "two")) == []


# -- lost and stopped processes ----------------------------------------------------------------------------------------


def after_upload(rank: int, step: int, sent: str) -> dict[int, Hook]:
    """Hooks for a signal to one process before that step, once MLflow has a checkpoint."""
    if rank == 0:
        return {0: ("signal_after_upload", [step, sent])}
    return {0: ("wait_for_upload", [step]), 1: ("signal_before_step", [step, sent])}


@pytest.mark.parametrize("lose", [False, True], ids=["state-kept", "state-lost"])
@pytest.mark.parametrize(("rank", "step"), [(0, 5), (1, 5), (1, 8)])
def test_killed_process_ends_the_other_and_both_resume_to_the_same_bits(
    lab: Lab, reference: Outcome, rank: int, step: int, lose: bool
) -> None:
    key = f"killed-{rank}-{step}-{lose}"
    codes = (-9, 75) if rank == 0 else (75, -9)
    completed = train_pair(lab, key, codes=codes, hooks=after_upload(rank, step, "SIGKILL"))
    assert completed[1 - rank].ended_at - completed[rank].ended_at < LONGEST_STOP_S
    assert "lost" in completed[1 - rank].stderr
    if lose:
        for each in lab.folder.glob(f"state-{key}-*"):
            each.rename(each.with_name(f"lost-{each.name}"))
    train_pair(lab, key)
    outcome = lab.outcome("task2", key)
    assert compare(reference, outcome) == []
    assert outcome.tags["cnn_jobs.attempt"] == "2"
    assert "cnn_jobs.continued_elsewhere" not in outcome.tags


@pytest.mark.parametrize("rank", [0, 1])
def test_process_lost_before_any_progress_ends_the_other_with_1(lab: Lab, rank: int) -> None:
    """Without MLflow and before the first step, nothing of this attempt lasts."""
    hooks: dict[int, Hook] = {rank: ("signal_before_step", [0, "SIGKILL"])}
    codes = (-9, 1) if rank == 0 else (1, -9)
    completed = train_pair(lab, f"early-{rank}", codes=codes, hooks=hooks, uri="http://127.0.0.1:9")
    assert completed[1 - rank].ended_at - completed[rank].ended_at < LONGEST_STOP_S
    assert re.search(r"^error: .*\blost ", completed[1 - rank].stderr, re.M)


@pytest.mark.parametrize("rank", [0, 1])
def test_stop_of_one_stops_both_and_both_resume_to_the_same_bits(lab: Lab, reference: Outcome, rank: int) -> None:
    key = f"stopped-{rank}"
    completed = train_pair(lab, key, codes=(75, 75), hooks={rank: ("signal_before_step", [7, "SIGTERM"])})
    assert completed[0].ended_at - completed[rank].signalled_at < 10  # type: ignore[operator]
    assert lab.run_of("task2", key).data.tags["cnn_jobs.state"] == "interrupted"
    train_pair(lab, key)
    assert compare(reference, lab.outcome("task2", key)) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_silent_process_is_lost(lab: Lab, rank: int) -> None:
    """SIGSTOP, as a machine without power: its connections stay open, and nothing arrives from them."""
    children = start_pair(lab, f"silent-{rank}", hooks=after_upload(rank, 4, "SIGSTOP"))
    try:
        other = children[1 - rank].wait(120)
        assert other.code == 75, other.stderr
        assert f"lost rank {rank}: no status for 20 s" in other.stderr
        assert other.ended_at - children[rank].signalled_at < LONGEST_STOP_S  # type: ignore[operator]
    finally:
        os.kill(children[rank].pid, signal.SIGKILL)


def test_process_that_writes_a_long_checkpoint_is_not_lost(lab: Lab) -> None:
    slow: Hook = ("slow_save", [4.0])
    train_pair(lab, "slow", "--validations-per-epoch", 1, hooks={0: slow, 1: slow})


def test_bug_in_one_process_is_a_loss_for_the_other(lab: Lab) -> None:
    completed = train_pair(lab, "bug", codes=(75, 1), hooks={1: ("error_before_step", [6])})
    assert "lost rank 1: ZeroDivisionError: made by the test" in completed[0].stderr


# -- runs that can never work ------------------------------------------------------------------------------------------


def last_line(completed: Completed) -> str:
    return completed.stderr.strip().splitlines()[-1]


def test_other_data_in_one_process_ends_both(lab: Lab, tmp_path: Path) -> None:
    write_prepared(striped_dataset(seed=1), tmp_path / "other.npz", compressed=False)
    port = free_port()
    for each in wait([start(lab, "data", 0, port), start(lab, "data", 1, port, data=tmp_path / "other.npz")]):
        assert each.code == 2, each.stderr
        assert "data_digest is " in last_line(each) or "group_hash is " in last_line(each)
        assert " on rank 0, but " in last_line(each)
    assert lab.run_of("task2", "data") is None


@pytest.mark.parametrize("missing", [0, 1])
def test_missing_data_in_one_process_ends_both_quickly(lab: Lab, tmp_path: Path, missing: int) -> None:
    port, path = free_port(), tmp_path / "none.npz"
    for each in wait([start(lab, "none", rank, port, data=path if rank == missing else None) for rank in (0, 1)]):
        assert each.code == 2, each.stderr
        assert each.seconds < 30
        assert "none.npz" in last_line(each)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("task2", ("--lr", "1e12"), "diverged"),
        ("task3e", (), "task3e has BatchNorm, whose statistics several processes can share on CUDA only"),
        ("task2", ("--batch-size", 9), "batch_size 9 cannot be divided equally among 2 processes"),
    ],
    ids=["diverged", "batch norm", "batch size"],
)
def test_run_that_cannot_work_ends_both(lab: Lab, task: str, options: tuple[object, ...], message: str) -> None:
    key = f"never-{message.split()[0]}"
    for each in train_pair(lab, key, *options, codes=(2, 2), task=task):
        assert message in last_line(each)
        assert "batch_size" not in message or each.stderr.count("\n") == 1
    run = lab.run_of(task, key)
    assert run.data.tags["cnn_jobs.state"] == "diverged" if message == "diverged" else run is None


# -- missing and late processes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
def test_missing_process_is_named(lab: Lab, rank: int) -> None:
    done = start(lab, "missing", rank, free_port(), "--rendezvous-timeout", 3).wait(60)
    assert done.code == 1, done.stderr
    assert "waited 3 s at 127.0.0.1:" in last_line(done)
    assert f"for rank {1 - rank} of 2 processes" in last_line(done)


@pytest.mark.parametrize("rank", [0, 1])
def test_signal_ends_the_wait_for_others(lab: Lab, rank: int) -> None:
    child = start(lab, "waiting", rank, free_port())
    until(lambda: rank == 0 or "rank 1: training" in child.text("stderr"))
    time.sleep(2)
    os.kill(child.pid, signal.SIGTERM)
    began = time.monotonic()
    done = child.wait(30)
    assert done.code == 1, done.stderr
    assert time.monotonic() - began < 10


def test_late_process_is_waited_for(lab: Lab, reference: Outcome) -> None:
    port = free_port()
    late = start(lab, "late", 1, port)
    time.sleep(3)  # nobody listens at rank 0's address yet
    for each in wait([start(lab, "late", 0, port), late]):
        assert each.code == 0, each.stderr
    assert compare(reference, lab.outcome("task2", "late")) == []


# -- other ways to start -----------------------------------------------------------------------------------------------


def test_torchrun_starts_both_and_sqlite_suffices(
    lab: Lab, reference: Outcome, mlflow_uri: str, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": mlflow_uri,
        "CNN_JOBS_STATE_DIR": str(tmp_path / "state"),
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "cnn_jobs", "train"]
    arguments = ["task2", "--data", lab.data, "--experiment", "task2", "--run-key", "torchrun", *SMALL]
    ran = subprocess.run(
        [*command, *map(str, arguments)], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 0, ran.stderr
    run = only_run(mlflow_uri, "task2")
    assert (run.info.status, run.data.tags["cnn_jobs.world_size"]) == ("FINISHED", "2")
    assert dict(rows(mlflow_uri, run.info.run_id)) == reference.losses()
    assert [run.data.metrics["last/test_loss"]] == [v for name, _, v in reference.rows if name == "last/test_loss"]


def test_another_number_of_processes_resumes_with_a_tag(lab: Lab, reference: Outcome) -> None:
    train_pair(lab, "shrunk", codes=(75, 75), hooks={0: ("signal_before_step", [6, "SIGTERM"])})
    outcome = train_single(lab, "shrunk", CNN_JOBS_STATE_DIR=str(lab.folder / "state-shrunk-0"))
    assert "processes 2 -> 1" in outcome.tags["cnn_jobs.continued_elsewhere"]
    for name, tensor in reference.state["model"].items():
        assert torch.allclose(tensor, outcome.state["model"][name], atol=1e-5)
