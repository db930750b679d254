"""How a run can end: exit code and MLflow status of real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cnn_jobs.training.checkpoint import load_checkpoint
from tests.helpers.disks import mounted_disk, resize
from tests.helpers.endings import ENDINGS, LONGEST_STOP_S, Ending
from tests.helpers.forkserver import Child
from tests.helpers.servers import unused_url
from tests.helpers.survival import Lab, compare
from tests.helpers.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

IN_FINISH = ("cnn_jobs.tracking.recorder:JournalRecorder.finish", "SIGTERM")
BEFORE_TRAINING = ("cnn_jobs.runs.train:Attempt._train", "SIGTERM")


def status_of(lab: Lab, key: str) -> tuple[str, str]:
    """MLflow status and state of the key's run."""
    run = lab.run_of("task2", key)
    return run.info.status, run.data.tags["cnn_jobs.state"]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.name)
def test_exit_code_and_status(lab: Lab, ending: Ending) -> None:
    key = f"ending-{ENDINGS.index(ending)}"
    done = ending.start(lab, key)
    assert done.code == ending.code, done.stderr
    if done.signalled_at is not None and ending.code != -9:
        assert done.seconds_after_signal < LONGEST_STOP_S
    run = lab.run_of("task2", key)
    if not ending.status:
        assert run is None
        return
    assert status_of(lab, key) == (ending.status, ending.state), done.stderr
    assert ending.reason in run.data.tags.get("cnn_jobs.reason", "")
    assert bool(ending.reason) == bool(run.data.tags.get("cnn_jobs.reason"))
    if ending.code == 75:
        again = lab.train("task2", key)
        assert again.code == 0, again.stderr
        assert status_of(lab, key) == ("FINISHED", "finished")
        assert not lab.run_of("task2", key).data.tags["cnn_jobs.reason"]


def test_signal_after_the_run_is_finished_changes_nothing(lab: Lab) -> None:
    hook_args = ["cnn_jobs.cli.console:print_results", "SIGTERM"]
    done = lab.train("task2", "printed", hook="signal_before", hook_args=hook_args)
    assert done.code == 0, done.stderr
    assert "Compare runs" in done.stdout
    assert status_of(lab, "printed")[0] == "FINISHED"


@pytest.mark.parametrize(
    ("target", "codes"),
    [
        # One step is trained before the signal is handled, and its checkpoint is uploaded.
        (("cnn_jobs.training.loop:epoch_order", "SIGTERM"), [75, 75, 75]),
        (BEFORE_TRAINING, [1, 1]),
    ],
    ids=["after a step", "before a step"],
)
def test_attempts_that_lose_their_disk_need_progress_for_exit_75(
    lab: Lab, target: tuple[str, str], codes: list[int]
) -> None:
    """To record the start again is not progress; Kubernetes counts exit code 1."""
    for code in codes:
        done = lab.train("task2", f"lost-{codes[0]}", hook="signal_before", hook_args=target)
        assert done.code == code, done.stderr
        lab.lose_state(f"lost-{codes[0]}")


def test_signal_without_progress_is_exit_1(lab: Lab) -> None:
    """Kubernetes does not count exit code 75: an attempt without progress must not use it."""
    assert lab.train("task2", "stuck", hook="signal_at_step", hook_args=[5, "SIGTERM"]).code == 75
    for _ in range(2):
        again = lab.train("task2", "stuck", hook="signal_before", hook_args=BEFORE_TRAINING)
        assert again.code == 1, again.stderr
        assert status_of(lab, "stuck") == ("KILLED", "interrupted")


def test_series_stops_within_ten_seconds_without_mlflow(lab: Lab) -> None:
    series = ("--seeds", "0-2")
    away = {"MLFLOW_TRACKING_URI": unused_url()}
    done = lab.train("task2", "series", *series, hook="signal_at_step", hook_args=[5, "SIGTERM"], **away)
    assert done.code == 75, done.stderr
    assert done.seconds_after_signal < LONGEST_STOP_S
    assert "seed1" not in done.stderr
    assert "--seeds 0-2 --run-key series" in done.stderr
    again = lab.train("task2", "series", *series)
    assert again.code == 0, again.stderr


def test_signal_during_the_upload_leaves_the_rest_to_the_next_attempt(lab: Lab) -> None:
    away = {"MLFLOW_TRACKING_URI": unused_url()}
    done = lab.train("task2", "unsent", hook="signal_before", hook_args=IN_FINISH, **away)
    assert done.code == 75, done.stderr
    assert done.seconds_after_signal < LONGEST_STOP_S
    assert "cnn-jobs replay" in done.stderr
    # The next attempt uploads the rest and trains nothing.
    again = lab.train("task2", "unsent", hook="signal_at_step", hook_args=[1, "SIGKILL"])
    assert again.code == 0, again.stderr
    assert status_of(lab, "unsent")[0] == "FINISHED"


def test_checkpoint_is_complete_after_sigterm_in_its_write(lab: Lab) -> None:
    ending = next(each for each in ENDINGS if each.name == "SIGTERM in a checkpoint's write")
    ending.start(lab, "cut")
    assert load_checkpoint(lab.state_dir("cut") / "cut" / "checkpoints" / "last.pt")["step"] == 2


def test_suspended_process_loses_and_duplicates_nothing(lab: Lab) -> None:
    """SIGSTOP and SIGCONT, as a suspended laptop."""
    child = lab.start("task2", "suspended", hook="slow_steps", hook_args=[0.3])
    until(lambda: "step 4/12" in child.text("stderr"))
    os.kill(child.pid, signal.SIGSTOP)
    time.sleep(3)
    os.kill(child.pid, signal.SIGCONT)
    done = child.wait()
    assert done.code == 0, done.stderr
    assert compare(lab.reference("task2"), lab.outcome("task2", "suspended")) == []


def test_clock_that_jumps_back_changes_only_timestamps(lab: Lab) -> None:
    done = lab.train("task2", "jump", hook="clock_jumps_back_at_step", hook_args=[5, 7200.0])
    assert done.code == 0, done.stderr
    assert compare(lab.reference("task2"), lab.outcome("task2", "jump")) == []
    assert status_of(lab, "jump")[0] == "FINISHED"


def test_costs_add_up_to_the_wall_time_of_the_attempts(lab: Lab) -> None:
    """As measured by this process."""
    measured = []
    for hook, hook_args in (
        ("signal_at_step", [5, "SIGKILL"]),
        ("signal_at_step", [9, "SIGTERM"]),
        ("cheap_outputs", []),
    ):
        done = lab.train("task2", "costs", hook=hook, hook_args=hook_args)
        measured.append((done.signalled_at or done.ended_at) - (done.ended_at - done.seconds))
    metrics = lab.run_of("task2", "costs").data.metrics
    assert metrics["ledger/attempts"] == 3
    # Killed at step 5 with a checkpoint at 4; SIGTERM at step 9 saved everything.
    assert metrics["ledger/steps"] == 5 + 5 + 3
    assert metrics["ledger/steps_thrown_away"] == 1
    assert 0 < metrics["ledger/device_seconds_thrown_away"] < metrics["ledger/device_seconds"]
    assert metrics["ledger/wall_seconds"] == pytest.approx(sum(measured), abs=len(measured) * 1.0)
    assert metrics["ledger/device_seconds"] < metrics["ledger/wall_seconds"]


@pytest.fixture
def disk(lab: Lab) -> Iterator[Path]:
    with mounted_disk(lab.folder / "small", "1m") as folder:
        yield folder


@pytest.mark.parametrize("size", ["64k", "300k", "4m"])
def test_full_disk_fails_the_run_and_more_room_continues_it(lab: Lab, disk: Path, size: str) -> None:
    """No room for the journal, for the first checkpoint, or for a later one."""
    key, environment = f"full-{size}", {"CNN_JOBS_STATE_DIR": str(disk)}
    resize(disk, size)
    done = lab.train("task2", key, **environment)
    assert done.code == 1, done.stderr
    assert "no space left on the device" in done.stderr
    assert "Traceback" not in done.stderr
    if run := lab.run_of("task2", key):  # without room for the first record there is none
        assert status_of(lab, key) == ("FAILED", "failed")
        assert "no space left on the device" in run.data.tags["cnn_jobs.reason"]
    resize(disk, "200m")
    again = lab.train("task2", key, **environment)
    assert again.code == 0, again.stderr
    assert compare(lab.reference("task2"), lab.outcome("task2", key)) == []


# -- two attempts of one key -------------------------------------------------------------------------------------------

Start = Callable[..., Child]


@pytest.fixture
def start(lab: Lab) -> Start:
    """Starts a slow training outside of a Job, with a state directory of this name."""

    def start(key: str, state: str, seconds: float = 0.2) -> Child:
        own: dict[str, Any] = {"CNN_JOBS_STATE_DIR": str(lab.folder / state), "CNN_JOBS_JOB_UID": ""}
        return lab.start("task2", key, "--run-key", key, hook="slow_steps", hook_args=[seconds], **own)

    return start


def test_second_attempt_in_the_same_directory_is_refused(lab: Lab, start: Start) -> None:
    first = start("shared", "shared-state")
    until(lambda: "step 2/12" in first.text("stderr"))
    second = start("shared", "shared-state").wait()
    assert second.code == 1
    assert f"is in use by process {first.pid}" in second.stderr
    assert first.wait().code == 0
    assert compare(lab.reference("task2"), lab.outcome("task2", "shared")) == []


@pytest.mark.parametrize("apart_s", [0.0, 0.3, 1.5])
def test_one_of_two_attempts_in_two_directories_wins(lab: Lab, start: Start, apart_s: float) -> None:
    key = f"two-{apart_s}"
    first = start(key, f"a-{apart_s}", 0.5)
    time.sleep(apart_s)
    second = start(key, f"b-{apart_s}", 0.5)
    results = [first.wait(), second.wait()]
    assert sorted(each.code for each in results) == [0, 1], [each.stderr for each in results]
    (loser,) = [each for each in results if each.code == 1]
    assert any(text in loser.stderr for text in ("is alive", "has taken over", "was finished by"))
    assert compare(lab.reference("task2"), lab.outcome("task2", key)) == []


def test_attempt_without_a_heartbeat_is_replaced(lab: Lab, start: Start) -> None:
    first = start("moved", "machine-a", 0.3)
    until(lambda: "step 6/12" in first.text("stderr"))
    time.sleep(1.0)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait().code == -9
    second = start("moved", "machine-b", 0.0).wait()
    assert second.code == 0, second.stderr
    assert "may be alive: watching its heartbeat" in second.stderr
    outcome = lab.outcome("task2", "moved")
    assert compare(lab.reference("task2"), outcome) == []
    assert outcome.tags["cnn_jobs.attempt"] == "2"
