"""How a run can end, and what its exit code and MLflow say of it: one row an ending, each a real process."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from cnn_jobs.training.checkpoint import load_checkpoint
from tests.helpers.forkserver import Ended
from tests.helpers.survival import Lab, compare
from tests.helpers.tracking import unused_address

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

# From the signal to the end of the process: a pod may have no more.
LONGEST_STOP_S = 10.0


@dataclass(frozen=True)
class Row:
    """One ending: what is done to the process, and what has to come of it. ``status`` "" is no run at all."""

    name: str
    code: int
    status: str
    state: str
    reason: str = ""
    hook: str = "cheap_outputs"
    hook_args: tuple[Any, ...] = ()
    more: tuple[object, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


def on_signal(name: str, target: str, code: int, status: str, state: str, sent: str = "SIGTERM", times: int = 1) -> Row:
    return Row(name, code, status, state, "stopped by" if status else "", "signal_before", (target, sent, times))


KILLED = (75, "KILLED", "interrupted")
TABLE = [
    Row("complete", 0, "FINISHED", "finished"),
    Row("diverged", 2, "FAILED", "diverged", "the training loss is", more=("--lr", "1e12")),
    Row("a bug in the main thread", 1, "FAILED", "failed", "ZeroDivisionError: made by", "raise_in",
        ("cnn_jobs.runs.artifacts:final_metrics", "ZeroDivisionError")),
    Row("out of memory, as an exception", 1, "FAILED", "failed", "MemoryError", "raise_in",
        ("cnn_jobs.training.loop:validate", "MemoryError")),
    Row("a library calls sys.exit(0)", 1, "FAILED", "failed", "SystemExit", "raise_in",
        ("cnn_jobs.runs.artifacts:write_artifacts", "SystemExit")),
    Row("a bug in the uploader thread", 1, "FAILED", "failed", "the uploader thread died of ZeroDivisionError",
        "raise_in", ("cnn_jobs.tracking.client:TrackingClient.log_metrics", "ZeroDivisionError")),
    Row("a bug in the uploader thread that stays", 1, "FAILED", "failed",
        "the uploader thread died of ZeroDivisionError", "raise_in",
        ("cnn_jobs.tracking.client:TrackingClient.log_metrics", "ZeroDivisionError", 0)),
    Row("a bug before the first step", 1, "FAILED", "failed", "ZeroDivisionError: made by", "raise_in",
        ("cnn_jobs.runs.setup:new_state", "ZeroDivisionError")),
    Row("a bug in the journal thread", 1, "FAILED", "failed", "the journal thread died of ZeroDivisionError",
        "journal_thread_dies"),
    Row("a stranger's thread dies", 1, "FAILED", "failed", "thread stranger died of ZeroDivisionError",
        "thread_dies_at_step", (3,)),
    Row("SIGTERM in a step", *KILLED, "stopped by SIGTERM after step 5", "kill_at_step", (5, "SIGTERM")),
    Row("SIGINT in a step", *KILLED, "stopped by SIGINT after step 5", "kill_at_step", (5, "SIGINT")),
    on_signal("two SIGTERMs", "cnn_jobs.training.loop:validate", *KILLED, times=2),
    on_signal("SIGTERM in a validation", "cnn_jobs.data.batches:ImageSet.in_order", *KILLED),
    on_signal("SIGTERM in a checkpoint's write", "cnn_jobs.runs.checkpointing:save_checkpoint", *KILLED),
    on_signal("SIGTERM in the final figures", "cnn_jobs.runs.artifacts:final_metrics", *KILLED),
    on_signal("SIGTERM in the plots", "cnn_jobs.runs.artifacts:write_artifacts", *KILLED),
    on_signal("SIGTERM as the data is loaded", "cnn_jobs.data.sources:open_dataset", 1, "", ""),
    on_signal("SIGTERM as the run is looked up", "cnn_jobs.runs.resume:find_run", 1, "", ""),
    Row("SIGKILL in a step", -9, "RUNNING", "running", "", "kill_at_step", (5, "SIGKILL")),
    Row("a record that MLflow refuses", 1, "FAILED", "failed", "MLflow refused 1 records", "refused_metric"),
    Row("MLflow away, the state is kept", 75, "", "", env={"MLFLOW_TRACKING_URI": unused_address()},
        more=("--ship-deadline", 0.5)),
    Row("MLflow away, the state goes with the pod", 1, "", "", env={"MLFLOW_TRACKING_URI": unused_address()},
        more=("--ship-deadline", 0.5, "--no-durable-state")),
]  # fmt: skip


def run_of(lab: Lab, key: str) -> Any:
    """The key's run in MLflow, ``None`` for none."""
    from mlflow import MlflowClient

    client = MlflowClient(lab.uri)
    experiment = client.get_experiment_by_name("task2")
    if experiment is None:
        return None
    found = client.search_runs([experiment.experiment_id], f"tags.`cnn_jobs.run_key` = '{key}'")
    assert len(found) <= 1
    return found[0] if found else None


def start(lab: Lab, row: Row, key: str) -> Ended:
    environment = {**lab.environment(key), **row.env}
    arguments = lab.arguments("task2", *row.more)
    hook = f"tests.helpers.hooks:{row.hook}"
    return lab.server.run(arguments, environment, hook=hook, hook_args=row.hook_args)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_an_ending_is_what_the_table_says(lab: Lab, row: Row) -> None:
    key = row.name.replace(" ", "-").replace(",", "").replace("'", "").replace("(0)", "")
    ended = start(lab, row, key)
    assert ended.code == row.code, ended.stderr
    if ended.signalled is not None and row.code != -9:
        assert ended.seconds_after_signal < LONGEST_STOP_S
    run = run_of(lab, key)
    if not row.status:
        assert run is None
        return
    assert (run.info.status, run.data.tags["cnn_jobs.state"]) == (row.status, row.state), ended.stderr
    assert row.reason in run.data.tags.get("cnn_jobs.reason", "")
    if not row.reason:
        assert not run.data.tags.get("cnn_jobs.reason")
    if row.code == 75:
        again = lab.train("task2", key)
        assert again.code == 0, again.stderr
        assert run_of(lab, key).info.status == "FINISHED"
        assert not run_of(lab, key).data.tags["cnn_jobs.reason"]


def test_a_signal_after_the_run_is_finished_changes_nothing(lab: Lab) -> None:
    """While the result is printed: the run is FINISHED, and so is the command."""
    hook = ["cnn_jobs.cli.console:print_results", "SIGTERM"]
    ended = lab.train("task2", "printed", hook="signal_before", hook_args=hook)
    assert ended.code == 0, ended.stderr
    assert "Compare runs" in ended.stdout
    assert run_of(lab, "printed").info.status == "FINISHED"


def test_attempts_that_lose_their_disk_before_a_step_do_not_go_on_for_ever(lab: Lab) -> None:
    """Each records its start again: that is no progress, and Kubernetes counts the pod."""
    codes = []
    for _ in range(3):
        hook = ["cnn_jobs.training.loop:epoch_order", "SIGTERM"]
        codes.append(lab.train("task2", "lost", hook="signal_before", hook_args=hook).code)
        lab.lose_state("lost")
    assert codes == [75, 75, 75]  # one step is trained before the signal is granted, and its checkpoint arrives
    codes = []
    for _ in range(2):
        hook = ["cnn_jobs.runs.train:Attempt._train", "SIGTERM"]
        codes.append(lab.train("task2", "none", hook="signal_before", hook_args=hook).code)
        lab.lose_state("none")
    assert codes == [1, 1]


def test_a_series_that_is_stopped_ends_within_ten_seconds_though_mlflow_is_away(lab: Lab) -> None:
    environment = {**lab.environment("away"), "MLFLOW_TRACKING_URI": unused_address()}
    arguments = lab.arguments("task2", "--seeds", "0-2")
    hook = {"hook": "tests.helpers.hooks:kill_at_step", "hook_args": [5, "SIGTERM"]}
    ended = lab.server.run(arguments, environment, **hook)
    assert ended.code == 75, ended.stderr
    assert ended.seconds_after_signal < LONGEST_STOP_S
    assert "seed1" not in ended.stderr
    assert "--seeds 0-2 --run-key away" in ended.stderr
    again = lab.train("task2", "away", "--seeds", "0-2")
    assert again.code == 0, again.stderr


def test_a_signal_without_progress_is_not_endlessly_ignored(lab: Lab) -> None:
    """Exit 75 is not counted by Kubernetes: an attempt that brought nothing must not use it."""
    first = lab.train("task2", "stuck", hook="kill_at_step", hook_args=[5, "SIGTERM"])
    assert first.code == 75
    for _ in range(2):
        again = lab.train(
            "task2", "stuck", hook="signal_before", hook_args=["cnn_jobs.runs.train:Attempt._train", "SIGTERM"]
        )
        assert again.code == 1, again.stderr
        run = run_of(lab, "stuck")
        assert (run.info.status, run.data.tags["cnn_jobs.state"]) == ("KILLED", "interrupted")


def test_a_signal_while_the_rest_is_sent_leaves_it_to_the_next_attempt(lab: Lab) -> None:
    at_the_end = ("cnn_jobs.tracking.recorder:JournalRecorder.finish", "SIGTERM")
    away = Row("", 0, "", "", hook="signal_before", hook_args=at_the_end, env={"MLFLOW_TRACKING_URI": unused_address()})
    ended = start(lab, away, "unsent")
    assert ended.code == 75, ended.stderr
    assert ended.seconds_after_signal < LONGEST_STOP_S
    assert "cnn-jobs replay" in ended.stderr
    # The next attempt ships the rest and trains nothing.
    again = lab.train("task2", "unsent", hook="kill_at_step", hook_args=[1, "SIGKILL"])
    assert again.code == 0, again.stderr
    assert run_of(lab, "unsent").info.status == "FINISHED"


def test_a_checkpoint_whose_write_was_cut_by_sigterm_is_whole(lab: Lab) -> None:
    row = next(row for row in TABLE if row.name == "SIGTERM in a checkpoint's write")
    start(lab, row, "cut")
    assert load_checkpoint(lab.state_dir("cut") / "cut" / "checkpoints" / "last.pt")["step"] == 2


def test_stopped_and_continued_it_goes_on(lab: Lab) -> None:
    """``kill -STOP`` and ``-CONT``, as a suspended laptop: nothing is lost and nothing doubled."""
    reference = lab.train("task2", "never-stopped")
    assert reference.code == 0
    child = lab.server.start(
        lab.arguments("task2"), lab.environment("suspended"), hook="tests.helpers.hooks:slow_steps", hook_args=[0.3]
    )
    while "step 4/12" not in child.text("stderr"):
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGSTOP)
    time.sleep(3)
    os.kill(child.pid, signal.SIGCONT)
    ended = child.wait()
    assert ended.code == 0, ended.stderr
    assert compare(lab.outcome("task2", "never-stopped"), lab.outcome("task2", "suspended")) == []


def test_a_clock_that_jumps_back_changes_nothing_but_timestamps(lab: Lab) -> None:
    assert lab.train("task2", "steady").code == 0
    ended = lab.train("task2", "jump", hook="clock_jumps_back_at_step", hook_args=[5, 7200.0])
    assert ended.code == 0, ended.stderr
    assert compare(lab.outcome("task2", "steady"), lab.outcome("task2", "jump")) == []
    assert run_of(lab, "jump").info.status == "FINISHED"


def test_the_ledger_adds_up_to_the_attempts_wall_time(lab: Lab) -> None:
    """Outside of the process, too: what the attempts took by the test's own clock."""
    measured = []
    for hook, arguments in (
        ("kill_at_step", [5, "SIGKILL"]),
        ("kill_at_step", [9, "SIGTERM"]),
        ("cheap_outputs", []),
    ):
        ended = lab.train("task2", "costs", hook=hook, hook_args=arguments)
        measured.append((ended.signalled or ended.ended) - (ended.ended - ended.seconds))
    metrics = run_of(lab, "costs").data.metrics
    assert metrics["ledger/attempts"] == 3
    # Killed at step 5 with a checkpoint at 4; SIGTERM at step 9 saved all.
    assert metrics["ledger/steps"] == 5 + 5 + 3
    assert metrics["ledger/steps_thrown_away"] == 1
    assert 0 < metrics["ledger/device_seconds_thrown_away"] < metrics["ledger/device_seconds"]
    assert metrics["ledger/wall_seconds"] == pytest.approx(sum(measured), abs=len(measured) * 1.0)
    assert metrics["ledger/device_seconds"] < metrics["ledger/wall_seconds"]


@pytest.fixture
def small_disk(lab: Lab) -> Iterator[Callable[[str], None]]:
    """A disk of its own under ``small/`` of the laboratory; call it with a size to make it that large."""
    folder = lab.folder / "small"
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True) and None
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("size", ["64k", "300k", "4m"])
def test_a_full_disk_fails_the_run_and_says_so(lab: Lab, small_disk: Callable[[str], None], size: str) -> None:
    """Whatever does not fit, the journal, the first checkpoint or a later one: and with more room it goes on."""
    assert lab.train("task2", f"enough-{size}").code == 0
    small_disk(size)
    key = f"full-{size}"
    environment = lab.environment(key, CNN_JOBS_STATE_DIR=str(lab.folder / "small"))
    hook = "tests.helpers.hooks:cheap_outputs"
    ended = lab.server.run(lab.arguments("task2"), environment, hook=hook)
    assert ended.code == 1, ended.stderr
    assert "no space left on the device" in ended.stderr
    assert "Traceback" not in ended.stderr
    run = run_of(lab, key)
    if run:  # with no room for the very first record there is none
        assert (run.info.status, run.data.tags["cnn_jobs.state"]) == ("FAILED", "failed")
        assert "no space left on the device" in run.data.tags["cnn_jobs.reason"]
    small_disk("200m")
    again = lab.server.run(lab.arguments("task2"), environment, hook=hook)
    assert again.code == 0, again.stderr
    assert compare(lab.outcome("task2", f"enough-{size}"), lab.outcome("task2", key)) == []


# -- two attempts of one key ---------------------------------------------------------------------------------------


@pytest.fixture
def without_job(lab: Lab) -> Any:
    """Starts a training under a key that no Job vouches for, in a state directory of its own choice."""

    def begin(key: str, state: str, seconds: float = 0.2) -> Any:
        environment = lab.environment(key, CNN_JOBS_STATE_DIR=str(lab.folder / state))
        del environment["CNN_JOBS_JOB_UID"]
        arguments = lab.arguments("task2", "--run-key", key)
        hook = "tests.helpers.hooks:slow_steps"
        return lab.server.start(arguments, environment, hook=hook, hook_args=[seconds])

    return begin


def test_two_attempts_at_once_in_one_directory(lab: Lab, without_job: Any) -> None:
    assert lab.train("task2", "alone").code == 0
    first = without_job("shared", "shared-state")
    while "step 2/12" not in first.text("stderr"):
        time.sleep(0.05)
    second = without_job("shared", "shared-state").wait()
    assert second.code == 1
    assert f"is in use by process {first.pid}" in second.stderr
    assert first.wait().code == 0
    assert compare(lab.outcome("task2", "alone"), lab.outcome("task2", "shared")) == []


@pytest.mark.parametrize("apart_s", [0.0, 0.3, 1.5])
def test_two_attempts_at_once_in_two_directories(lab: Lab, without_job: Any, apart_s: float) -> None:
    assert lab.train("task2", f"alone-{apart_s}").code == 0
    key = f"twins-{apart_s}"
    first = without_job(key, f"a-{apart_s}", 0.5)
    time.sleep(apart_s)
    second = without_job(key, f"b-{apart_s}", 0.5)
    ends = [first.wait(), second.wait()]
    assert sorted(end.code for end in ends) == [0, 1], [end.stderr for end in ends]
    (loser,) = [end for end in ends if end.code == 1]
    assert "is alive" in loser.stderr or "has taken over" in loser.stderr or "was finished by" in loser.stderr
    assert compare(lab.outcome("task2", f"alone-{apart_s}"), lab.outcome("task2", key)) == []


def test_a_dead_attempt_elsewhere_is_taken_over_when_its_heartbeat_stands_still(lab: Lab, without_job: Any) -> None:
    assert lab.train("task2", "alone-again").code == 0
    first = without_job("moved", "machine-a", 0.3)
    while "step 6/12" not in first.text("stderr"):
        time.sleep(0.05)
    time.sleep(1.0)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait().code == -9
    second = without_job("moved", "machine-b", 0.0).wait()
    assert second.code == 0, second.stderr
    assert "may be alive: watching its heartbeat" in second.stderr
    outcome = lab.outcome("task2", "moved")
    assert compare(lab.outcome("task2", "alone-again"), outcome) == []
    assert outcome.tags["cnn_jobs.attempt"] == "2"
