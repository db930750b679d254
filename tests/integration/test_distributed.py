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
from tests.helpers.forkserver import Child, Ended
from tests.helpers.survival import Lab, Outcome, compare
from tests.helpers.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

# 36 of 40 pictures train: 3 steps an epoch, 12 in all, validated after 1, 3, 4, 6 and so on.
SMALL = ("--epochs", 4, "--batch-size", 12, "--early-stop-count", 0, "--threads", 1)
STEPS = 12
# A process that lost another ends within this.
MINUTE = 60.0
Hook = tuple[str, list[Any]]
PLAIN: Hook = ("cheap_outputs", [])


def pair(lab: Lab, key: str, *more: object, hooks: Mapping[int, Hook] = {}, **settings: Any) -> list[Child]:
    """Both processes of a Job of two indexes, started."""
    port = free_port()
    return [one(lab, key, rank, port, *more, hook=hooks.get(rank, PLAIN), **settings) for rank in (0, 1)]


def one(
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
    """One of the two, each with a disk of its own."""
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
    return lab.server.start(arguments, environment, hook=f"tests.helpers.hooks:{hook[0]}", hook_args=hook[1])


def end(children: list[Child], seconds: float = 120) -> list[Ended]:
    return [child.wait(seconds) for child in children]


def codes(ended: list[Ended]) -> list[int]:
    return [each.code for each in ended]


def texts(ended: list[Ended]) -> str:
    return "\n".join(f"rank {rank}:\n{each.stderr}" for rank, each in enumerate(ended))


@pytest.fixture(scope="module")
def reference(lab: Lab) -> Outcome:
    """Two processes, never killed."""
    ended = end(pair(lab, "two"))
    assert codes(ended) == [0, 0], texts(ended)
    return lab.outcome("task2", "two")


def test_two_processes_get_the_results_of_one_within_the_stated_tolerance(lab: Lab, reference: Outcome) -> None:
    """docs/distributed.md: 1e-6 of a loss, 1e-6 of a weight, after these twelve steps."""
    environment = lab.environment("alone")
    ended = lab.server.run(
        ["train", "task2", "--data", lab.data, "--experiment", "task2", *SMALL],
        environment,
        hook="tests.helpers.hooks:cheap_outputs",
    )
    assert ended.code == 0, ended.stderr
    alone = lab.outcome("task2", "alone")
    ours = {(name, step): value for name, step, value in reference.rows if "loss" in name}
    theirs = {(name, step): value for name, step, value in alone.rows if "loss" in name}
    assert ours.keys() == theirs.keys()
    assert len(ours) > STEPS
    losses = max(abs(ours[key] - theirs[key]) for key in ours)
    weights = max(
        float((tensor - alone.state["model"][name]).abs().max()) for name, tensor in reference.state["model"].items()
    )
    assert losses < 1e-6
    assert weights < 1e-6
    assert reference.tags["cnn_jobs.world_size"] == "2"
    assert reference.tags["cnn_jobs.backend"] == "gloo"
    assert reference.tags["cnn_jobs.recipe_hash"] == alone.tags["cnn_jobs.recipe_hash"]
    assert "cnn_jobs.world_size" not in alone.tags


def test_rank_0_alone_records_and_both_end_well(lab: Lab, reference: Outcome) -> None:
    assert reference.status == "FINISHED"
    assert reference.runs == 1
    assert reference.tags["cnn_jobs.run_key"] == "two"  # the Job's UID, without the index
    assert not (lab.folder / "state-two-1").exists()
    assert [row for row in reference.rows if row[0] == "train/loss"] == [
        ("train/loss", step + 1, loss) for step, loss in enumerate(reference.state["train_losses"])
    ]


def test_a_run_that_is_finished_is_finished_for_both(lab: Lab, reference: Outcome) -> None:
    ended = end(pair(lab, "two"))
    assert codes(ended) == [0, 0], texts(ended)
    assert "finished before; nothing was trained" in ended[0].stdout
    assert compare(reference, lab.outcome("task2", "two")) == []


@pytest.mark.parametrize("lose", [False, True], ids=["state-kept", "state-lost"])
@pytest.mark.parametrize(("rank", "step"), [(0, 5), (1, 5), (1, 8)])
def test_a_killed_process_ends_the_other_and_both_resume_to_the_same_bits(
    lab: Lab, reference: Outcome, rank: int, step: int, lose: bool
) -> None:
    key = f"killed-{rank}-{step}-{lose}"
    hooks: dict[int, Hook] = {0: ("wait_for_upload", [step]), 1: PLAIN}
    hooks[rank] = ("signal_in_step", [step, "SIGKILL"]) if rank else ("upload_then_signal_in_step", [step, "SIGKILL"])
    ended = end(pair(lab, key, hooks=hooks))
    assert ended[rank].code == -9
    assert ended[1 - rank].code == 75, texts(ended)
    assert ended[1 - rank].ended - ended[rank].ended < MINUTE
    assert "lost" in ended[1 - rank].stderr
    if lose:
        for each in lab.folder.glob(f"state-{key}-*"):
            each.rename(each.with_name(f"lost-{each.name}"))
    again = end(pair(lab, key))
    assert codes(again) == [0, 0], texts(again)
    outcome = lab.outcome("task2", key)
    assert compare(reference, outcome) == []
    assert outcome.tags["cnn_jobs.attempt"] == "2"
    assert "cnn_jobs.continued_elsewhere" not in outcome.tags


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_lost_before_any_progress_ends_the_other_with_1(lab: Lab, rank: int) -> None:
    """Without MLflow and before the first step, nothing of this attempt lasts."""
    hooks: dict[int, Hook] = {rank: ("signal_in_step", [0, "SIGKILL"])}
    ended = end(pair(lab, f"early-{rank}", hooks=hooks, uri="http://127.0.0.1:9"))
    assert ended[rank].code == -9
    assert ended[1 - rank].code == 1, texts(ended)
    assert ended[1 - rank].ended - ended[rank].ended < MINUTE
    assert re.search(r"^error: .*\blost ", ended[1 - rank].stderr, re.M)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_of_one_stops_both_and_both_resume_to_the_same_bits(lab: Lab, reference: Outcome, rank: int) -> None:
    key = f"stopped-{rank}"
    ended = end(pair(lab, key, hooks={rank: ("signal_in_step", [7, "SIGTERM"])}))
    assert codes(ended) == [75, 75], texts(ended)
    assert ended[0].ended - ended[rank].signalled < 10  # type: ignore[operator]
    tags = lab.outcome_tags("task2", key)
    assert tags["cnn_jobs.state"] == "interrupted"
    again = end(pair(lab, key))
    assert codes(again) == [0, 0], texts(again)
    assert compare(reference, lab.outcome("task2", key)) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_vanishes_is_lost(lab: Lab, rank: int) -> None:
    """SIGSTOP stands for a machine without power: its connections stay open, and nothing arrives from them."""
    hooks: dict[int, Hook] = {0: ("wait_for_upload", [4]), 1: PLAIN}
    hooks[rank] = ("signal_in_step", [4, "SIGSTOP"]) if rank else ("upload_then_signal_in_step", [4, "SIGSTOP"])
    children = pair(lab, f"silent-{rank}", hooks=hooks)
    try:
        other = children[1 - rank].wait(120)
        assert other.code == 75, other.stderr
        assert f"lost rank {rank}: no status for 20 s" in other.stderr
        mark = lab.folder / "children"
        (signalled,) = [
            float(path.read_text())
            for path in mark.glob("*/signalled")
            if path.stat().st_mtime > (mark / "..").stat().st_ctime and str(children[rank]._folder) in str(path)
        ]
        assert other.ended - signalled < MINUTE
    finally:
        os.kill(children[rank].pid, signal.SIGKILL)


def test_a_long_checkpoint_is_no_lost_process(lab: Lab, reference: Outcome) -> None:
    slow: Hook = ("slow_save", [4.0])
    ended = end(pair(lab, "slow", "--validations-per-epoch", 1, hooks={0: slow, 1: slow}))
    assert codes(ended) == [0, 0], texts(ended)


def test_a_bug_in_one_ends_the_other_as_a_loss(lab: Lab) -> None:
    ended = end(pair(lab, "bug", hooks={1: ("error_in_step", [6])}))
    assert ended[1].code == 1
    assert ended[0].code == 75, texts(ended)
    assert "lost rank 1: ZeroDivisionError: made by the test" in ended[0].stderr


# -- what can never work ----------------------------------------------------------------------------------------------


def last_line(ended: Ended) -> str:
    return ended.stderr.strip().splitlines()[-1]


def test_other_data_in_one_of_them_end_both(lab: Lab, tmp_path: Path) -> None:
    write_prepared(striped_dataset(seed=1), tmp_path / "other.npz", compressed=False)
    port = free_port()
    ended = end([one(lab, "data", 0, port), one(lab, "data", 1, port, data=tmp_path / "other.npz")])
    assert codes(ended) == [2, 2], texts(ended)
    for each in ended:
        assert "data_digest is " in last_line(each) or "group_hash is " in last_line(each)
        assert " on rank 0, but " in last_line(each)
    assert lab.count_of_runs("task2", "data") == 0


def test_data_that_only_one_of_them_lacks_end_both_quickly(lab: Lab, tmp_path: Path) -> None:
    port = free_port()
    for missing in (0, 1):
        children = [
            one(lab, "none", rank, port, data=tmp_path / "none.npz" if rank == missing else None) for rank in (0, 1)
        ]
        ended = end(children)
        assert codes(ended) == [2, 2], texts(ended)
        assert max(each.seconds for each in ended) < 30
        for each in ended:
            assert "none.npz" in last_line(each)


def test_a_training_that_diverges_ends_both(lab: Lab) -> None:
    ended = end(pair(lab, "diverged", "--lr", "1e12"))
    assert codes(ended) == [2, 2], texts(ended)
    assert lab.outcome_tags("task2", "diverged")["cnn_jobs.state"] == "diverged"
    for each in ended:
        assert "diverged" in last_line(each)


def test_batch_norm_on_cpus_is_refused(lab: Lab) -> None:
    ended = end(pair(lab, "norm", task="task3e"))
    assert codes(ended) == [2, 2], texts(ended)
    for each in ended:
        assert "task3e has BatchNorm, whose statistics several processes can share on CUDA only" in last_line(each)


def test_a_batch_that_does_not_divide_is_refused(lab: Lab) -> None:
    ended = end(pair(lab, "odd", "--batch-size", 9))
    assert codes(ended) == [2, 2], texts(ended)
    for each in ended:
        assert len(each.stderr.strip().splitlines()) == 1
        assert "batch_size 9 cannot be divided equally among 2 processes" in each.stderr


# -- alone ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_never_comes_is_named(lab: Lab, rank: int) -> None:
    ended = one(lab, "vain", rank, free_port(), "--rendezvous-timeout", 3).wait(60)
    assert ended.code == 1, ended.stderr
    assert "waited 3 s at 127.0.0.1:" in last_line(ended)
    assert f"for rank {1 - rank} of 2 processes" in last_line(ended)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_ends_the_wait_for_others(lab: Lab, rank: int) -> None:
    child = one(lab, "early", rank, free_port())
    until(lambda: rank == 0 or "rank 1: training" in child.text("stderr"))
    time.sleep(2)
    os.kill(child.pid, signal.SIGTERM)
    began = time.monotonic()
    ended = child.wait(30)
    assert ended.code == 1, ended.stderr
    assert time.monotonic() - began < 10


def test_a_late_process_is_waited_for(lab: Lab, reference: Outcome) -> None:
    port = free_port()
    late = one(lab, "late", 1, port)
    time.sleep(3)  # its name does not resolve, and nobody listens there
    ended = end([one(lab, "late", 0, port), late])
    assert codes(ended) == [0, 0], texts(ended)
    assert compare(reference, lab.outcome("task2", "late")) == []


# -- started otherwise ------------------------------------------------------------------------------------------------


def test_torchrun_can_start_it_and_sqlite_is_enough(
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
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_uri)
    experiment = client.get_experiment_by_name("task2")
    assert experiment
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.tags["cnn_jobs.world_size"]) == ("FINISHED", "2")
    losses = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(losses) == [(step, value) for name, step, value in reference.rows if name == "train/loss"]
    assert (run.data.metrics["last/test_loss"],) == tuple(v for n, _, v in reference.rows if n == "last/test_loss")


def test_another_number_of_processes_resumes_with_a_tag(lab: Lab, reference: Outcome) -> None:
    ended = end(pair(lab, "shrunk", hooks={0: ("signal_in_step", [6, "SIGTERM"])}))
    assert codes(ended) == [75, 75], texts(ended)
    environment = {**lab.environment("shrunk"), "CNN_JOBS_STATE_DIR": str(lab.folder / "state-shrunk-0")}
    alone = lab.server.run(
        ["train", "task2", "--data", lab.data, "--experiment", "task2", *SMALL],
        environment,
        hook="tests.helpers.hooks:cheap_outputs",
    )
    assert alone.code == 0, alone.stderr
    outcome = lab.outcome("task2", "shrunk")
    assert "processes 2 -> 1" in outcome.tags["cnn_jobs.continued_elsewhere"]
    for name, tensor in reference.state["model"].items():
        assert torch.allclose(tensor, outcome.state["model"][name], atol=1e-5)
