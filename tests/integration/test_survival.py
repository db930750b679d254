"""A run that is killed anywhere and continued is the same run: real processes and signals, a real MLflow server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from signal import Signals

import pytest

from tests.helpers.survival import EXIT_CODES, Lab, Outcome, compare, tensors_in
from tests.helpers.training import STEPS

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

# The second has BatchNorm, dropout and Adam; the first has none of them.
TASKS = ("task2", "task3e")


@pytest.mark.parametrize(("task", "tensors"), [("task2", 10), ("task3e", 40)])
def test_comparison_covers_state_and_rows(lab: Lab, task: str, tensors: int) -> None:
    outcome = lab.reference(task)
    assert tensors_in(outcome.state["model"]) > tensors / 2
    assert tensors_in(dict(outcome.state)) > tensors
    names = {name for name, _, _ in outcome.rows}
    assert {"train/loss", "val/loss", "val/accuracy", "best/test_loss", "last/train_accuracy"} <= names
    assert len(outcome.rows) == STEPS + 2 * 6 + 13
    assert outcome.status == "FINISHED"


@pytest.mark.parametrize("lose", [False, True], ids=["state-kept", "state-lost"])
@pytest.mark.parametrize("sent", EXIT_CODES)
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_run_killed_at_a_step_continues_as_the_same_run(lab: Lab, step: int, sent: str, lose: bool) -> None:
    task = TASKS[step % 2]
    key = f"{task}-{sent}-{step}-{lose}"
    first = lab.train(task, key, hook="signal_at_step", hook_args=[step, sent])
    assert first.code == EXIT_CODES[sent], first.stderr
    if lose:
        lab.lose_state(key)
    second = lab.train(task, key)
    assert second.code == 0, second.stderr
    outcome = lab.outcome(task, key)
    assert compare(lab.reference(task), outcome) == []
    assert outcome.status == "FINISHED"
    assert outcome.tags["cnn_jobs.attempt"] == "2"
    assert outcome.tags["cnn_jobs.state"] == "finished"
    shutil.rmtree(lab.state_dir(key))


def test_comparison_fails_without_the_generators(lab: Lab) -> None:
    """Control experiment: a program that ignores the generators continues another run."""
    first = lab.train("task3e", "control", hook="forget_generators", hook_args=[5, "SIGTERM"])
    assert first.code == 75, first.stderr
    second = lab.train("task3e", "control", hook="resume_without_generators")
    assert second.code == 0, second.stderr
    lines = compare(lab.reference("task3e"), lab.outcome("task3e", "control"))
    assert any("model" in line for line in lines)
    assert any("rows" in line for line in lines)


def test_finished_key_prints_its_result_and_trains_nothing(lab: Lab) -> None:
    assert lab.train("task2", "finished").code == 0
    for lost in (False, True):
        if lost:
            lab.lose_state("finished")
        again = lab.train("task2", "finished", hook="signal_at_step", hook_args=[1, "SIGKILL"])
        assert again.code == 0, again.stderr
        assert "finished before; nothing was trained" in again.stdout
        assert "last" in again.stdout
    assert compare(lab.reference("task2"), lab.outcome("task2", "finished")) == []


@pytest.mark.parametrize(
    ("option", "message"), [(("--lr", "0.001"), "recipe_hash"), (("--data", "shapes"), "data_digest")]
)
def test_key_of_another_recipe_or_data_set_is_refused(lab: Lab, option: tuple[str, str], message: str) -> None:
    lab.reference("task2")
    refused = lab.train("task2", "task2-reference", *option)
    assert refused.code == 2
    (line,) = refused.stderr.strip().splitlines()
    assert message in line


# -- new processes, signals from outside, everything as shipped --------------------------------------------------------

LONG = ("--epochs", 12, "--batch-size", 9, "--early-stop-count", 0, "--threads", 1)  # 48 steps
# Signals, each after the line of a step, and whether the state directory is lost afterwards.
KILLS = {
    "killed-once": [("SIGKILL", 10, False)],
    "terminated-once": [("SIGTERM", 22, False)],
    "killed-and-moved": [("SIGKILL", 30, True)],
    "killed-three-times": [("SIGKILL", 6, False), ("SIGTERM", 20, True), ("SIGKILL", 40, False)],
}


def run_process(lab: Lab, key: str, sent: str = "", step: int = 0) -> tuple[int, str]:
    """Runs the command in a new process, and sends it a signal when a step is printed; returns exit code and output."""
    log: Path = lab.folder / f"{key}.log"
    command = [sys.executable, "-m", "cnn_jobs", "train", "task3e", "--data", lab.data, "--experiment", "task3e", *LONG]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [str(word) for word in command], stderr=stream, stdout=stream, env={**os.environ, **lab.environment(key)}
        )
        try:
            while sent and f"step {step}/48" not in log.read_text() and process.poll() is None:
                time.sleep(0.005)
            if sent:
                process.send_signal(Signals[sent])
            began = time.monotonic()
            code = process.wait(timeout=120)
            assert not sent or time.monotonic() - began < 10
        finally:
            process.kill()
            process.wait()
    return code, log.read_text()


@pytest.fixture(scope="module")
def long_reference(lab: Lab) -> Outcome:
    code, text = run_process(lab, "long-reference")
    assert code == 0, text
    return lab.outcome("task3e", "long-reference")


@pytest.mark.parametrize("key", KILLS)
def test_processes_killed_from_outside_continue_as_the_same_run(lab: Lab, long_reference: Outcome, key: str) -> None:
    for sent, step, lost in KILLS[key]:
        code, text = run_process(lab, key, sent, step)
        assert code == EXIT_CODES[sent], text
        if lost:
            lab.lose_state(key)
    code, text = run_process(lab, key)
    assert code == 0, text
    outcome = lab.outcome("task3e", key)
    assert compare(long_reference, outcome) == []
    assert outcome.tags["cnn_jobs.attempt"] == str(len(KILLS[key]) + 1)
    assert outcome.status == "FINISHED"
