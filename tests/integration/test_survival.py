"""A run that is killed anywhere and continued is the same run: real processes, real signals, a real MLflow server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.survival import STEPS, Lab, Outcome, compare, tensors_in

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

# BatchNorm, dropout and Adam in the second, none of them in the first.
TASKS = ("task2", "task3e")


@pytest.fixture(scope="module")
def references(lab: Lab) -> dict[str, Outcome]:
    """The same trainings, never killed."""
    outcomes = {}
    for task in TASKS:
        ended = lab.train(task, f"{task}-reference")
        assert ended.code == 0, ended.stderr
        outcomes[task] = lab.outcome(task, f"{task}-reference")
    return outcomes


def test_the_comparison_compares_something(references: dict[str, Outcome]) -> None:
    for task, least in (("task2", 10), ("task3e", 40)):
        outcome = references[task]
        assert tensors_in(outcome.state["model"]) > least / 2
        assert tensors_in(dict(outcome.state)) > least
        names = {name for name, _, _ in outcome.rows}
        assert {"train/loss", "val/loss", "val/accuracy", "best/test_loss", "last/train_accuracy"} <= names
        assert len(outcome.rows) == STEPS + 2 * 6 + 13
        assert outcome.status == "FINISHED"


@pytest.mark.parametrize("lose", [False, True], ids=["state-kept", "state-lost"])
@pytest.mark.parametrize("sent", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_killed_at_a_step_and_continued_it_is_the_same_run(
    lab: Lab, references: dict[str, Outcome], step: int, sent: str, lose: bool
) -> None:
    task = TASKS[step % 2]
    key = f"{task}-{sent}-{step}-{lose}"
    first = lab.train(task, key, hook="kill_at_step", hook_args=[step, sent])
    assert first.code == {"SIGKILL": -9, "SIGTERM": 75}[sent], first.stderr
    if lose:
        lab.lose_state(key)
    second = lab.train(task, key)
    assert second.code == 0, second.stderr
    outcome = lab.outcome(task, key)
    assert compare(references[task], outcome) == []
    assert outcome.status == "FINISHED"
    assert outcome.tags["cnn_jobs.attempt"] == "2"
    assert outcome.tags["cnn_jobs.state"] == "finished"
    shutil.rmtree(lab.state_dir(key))


def test_without_the_generators_the_comparison_goes_red(lab: Lab, references: dict[str, Outcome]) -> None:
    """The negative control: a checkpoint that forgets them continues another run."""
    first = lab.train("task3e", "forgetful", hook="forget_generators", hook_args=[5, "SIGTERM"])
    assert first.code == 75, first.stderr
    second = lab.train("task3e", "forgetful", hook="resume_without_generators")
    assert second.code == 0, second.stderr
    lines = compare(references["task3e"], lab.outcome("task3e", "forgetful"))
    assert any("model" in line for line in lines)
    assert any("rows" in line for line in lines)


def test_a_finished_key_prints_its_result_and_trains_nothing(lab: Lab, references: dict[str, Outcome]) -> None:
    for lost in (False, True):
        if lost:
            lab.lose_state("task2-reference")
        again = lab.train("task2", "task2-reference", hook="kill_at_step", hook_args=[1, "SIGKILL"])
        assert again.code == 0, again.stderr
        assert "finished before; nothing was trained" in again.stdout
        assert "last" in again.stdout
    assert compare(references["task2"], lab.outcome("task2", "task2-reference")) == []


def test_a_key_of_another_recipe_or_data_set_is_refused(
    lab: Lab, references: dict[str, Outcome], tmp_path: Path
) -> None:
    refused = lab.train("task2", "task2-reference", "--lr", "0.001")
    assert refused.code == 2
    assert "recipe_hash" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    other = lab.train("task2", "task2-reference", "--data", "shapes")
    assert other.code == 2
    assert "data_digest" in other.stderr


# -- fresh processes, signals from outside, everything as it is shipped ------------------------------------------------

LONG = ("--epochs", 12, "--batch-size", 9, "--early-stop-count", 0, "--threads", 1)  # 48 steps
# Signals by the validation after which they are sent, and whether the state directory is lost afterwards.
FRESH = {
    "killed-once": [("SIGKILL", 10, False)],
    "terminated-once": [("SIGTERM", 22, False)],
    "killed-and-moved": [("SIGKILL", 30, True)],
    "killed-three-times": [("SIGKILL", 6, False), ("SIGTERM", 20, True), ("SIGKILL", 40, False)],
}


def fresh(lab: Lab, key: str, kill: tuple[str, int] | None = None) -> tuple[int, str]:
    """The real command in a process of its own; ``kill``: a signal, and the step that has to be reported first."""
    log = lab.folder / f"{key}.log"
    command = [sys.executable, "-m", "cnn_jobs", "train", "task3e", "--data", lab.data, "--experiment", "task3e", *LONG]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [str(word) for word in command], stderr=stream, stdout=stream, env={**os.environ, **lab.environment(key)}
        )
        try:
            while kill and f"step {kill[1]}/48" not in log.read_text() and process.poll() is None:
                time.sleep(0.005)
            if kill:
                process.send_signal(getattr(signal, kill[0]))
            began = time.monotonic()
            code = process.wait(timeout=120)
            assert not kill or time.monotonic() - began < 10
        finally:
            process.kill()
            process.wait()
    return code, log.read_text()


@pytest.fixture(scope="module")
def fresh_reference(lab: Lab) -> Outcome:
    code, text = fresh(lab, "fresh-reference")
    assert code == 0, text
    return lab.outcome("task3e", "fresh-reference")


@pytest.mark.parametrize("name", FRESH)
def test_fresh_processes_that_are_killed_from_outside(lab: Lab, fresh_reference: Outcome, name: str) -> None:
    for sent, step, lost in FRESH[name]:
        code, text = fresh(lab, name, (sent, step))
        assert code == {"SIGKILL": -9, "SIGTERM": 75}[sent], text
        if lost:
            lab.lose_state(name)
    code, text = fresh(lab, name)
    assert code == 0, text
    outcome = lab.outcome("task3e", name)
    assert compare(fresh_reference, outcome) == []
    assert outcome.tags["cnn_jobs.attempt"] == str(len(FRESH[name]) + 1)
    assert outcome.status == "FINISHED"
