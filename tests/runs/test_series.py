"""Several runs below a parent: what the parent says when they end in other ways than well."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.errors import (
    CheckpointMismatchError,
    CnnJobsError,
    DivergedError,
    InterruptedRunError,
    NotShippedError,
    RecipeError,
    TrackingError,
)
from cnn_jobs.recipe import Planned
from cnn_jobs.runs import series as module
from cnn_jobs.runs.series import exit_code, train_series
from cnn_jobs.runs.setup import RunResult, Session
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking.replay import replay
from tests.helpers.runs import only_run, options, session_of, train_run
from tests.helpers.tracking import unused_address

TASK = TASKS["task2"]
PLANNED = [Planned(f"seed{seed}", replace(TASK.recipe, seed=seed)) for seed in range(3)]


def result(seed: int, note: str = "") -> RunResult:
    recipe = replace(TASK.recipe, seed=seed)
    return RunResult(
        run_id="", url="", name="", recipe=recipe, metrics={}, steps=1, stopped_early=False, seconds=0.0, note=note
    )


def ending(
    error: BaseException | None, monkeypatch: pytest.MonkeyPatch, stop: StopRequest | None = None, note: str = ""
) -> list[int]:
    """Makes the second run end with ``error``, or after ``stop``; returns the seeds that are started."""
    started: list[int] = []

    def fake(session: Session, recipe: Any) -> Any:
        options = session.options
        started.append(recipe.seed)
        if stop and recipe.seed == 1:
            stop.record(signal.SIGTERM)
        assert options.parent_key
        assert options.run_key == f"{options.parent_key}-seed{recipe.seed}"
        assert options.run_name == f"task2-seed{recipe.seed}"
        if recipe.seed == 1 and error:
            raise error
        return result(recipe.seed, note)

    monkeypatch.setattr(module, "train_run", fake)
    return started


def call(uri: str, tmp_path: Path, dataset: Dataset, stop: StopRequest | None = None, **more: Any) -> Any:
    lines: list[str] = []
    session = session_of(TASK, options(uri, tmp_path, **more), dataset, stop=stop)
    results, errors = train_series(session, PLANNED, lines.append)
    return [each.recipe.seed for each in results], errors, lines


def test_all_well(mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ending(None, monkeypatch) == []
    assert call(mlflow_uri, tmp_path, tiny_dataset) == ([0, 1, 2], [], [])
    parent = only_run(mlflow_uri)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["cnn_jobs.role"] == "parent"


def test_a_failure_is_told_at_once_and_the_rest_goes_on(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = ending(DivergedError("too fast"), monkeypatch)
    results, errors, lines = call(mlflow_uri, tmp_path, tiny_dataset)
    assert (results, started, lines) == ([0, 2], [0, 1, 2], ["seed1: too fast"])
    assert [str(error) for error in errors] == ["too fast"]
    parent = only_run(mlflow_uri)
    assert (parent.info.status, parent.data.tags["cnn_jobs.reason"]) == ("FAILED", "too fast")


def test_a_signal_ends_the_series(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopRequest()
    started = ending(InterruptedRunError("stopped by SIGTERM"), monkeypatch, stop)
    results, _, _ = call(mlflow_uri, tmp_path, tiny_dataset, stop)
    assert (results, started) == ([0], [0, 1])
    parent = only_run(mlflow_uri)
    assert (parent.info.status, parent.data.tags["cnn_jobs.state"]) == ("KILLED", "interrupted")


def test_a_bug_in_a_run_leaves_no_parent_running(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(ZeroDivisionError("a bug"), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        call(mlflow_uri, tmp_path, tiny_dataset)
    parent = only_run(mlflow_uri)
    assert (parent.info.status, parent.data.tags["cnn_jobs.reason"]) == ("FAILED", "ZeroDivisionError: a bug")


@pytest.mark.parametrize("lost", [False, True], ids=["state-kept", "state-lost"])
def test_a_series_that_is_finished_can_be_called_again(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    ending(None, monkeypatch)
    for _ in range(2):
        assert call(mlflow_uri, tmp_path, tiny_dataset, run_key="series") == ([0, 1, 2], [], [])
        parent = only_run(mlflow_uri)
        assert parent.info.status == "FINISHED"
        assert parent.data.tags["mlflow.note.content"].endswith("- seed2\n")
        if lost:
            shutil.rmtree(tmp_path / "state", ignore_errors=True)
    assert parent.data.tags["cnn_jobs.attempt"] == "1"  # nothing was left to do
    monkeypatch.setattr(f"{__name__}.PLANNED", [*PLANNED, Planned("seed3", replace(TASK.recipe, seed=3))])
    assert call(mlflow_uri, tmp_path, tiny_dataset, run_key="series") == ([0, 1, 2, 3], [], [])
    parent = only_run(mlflow_uri)
    assert (parent.info.status, parent.data.tags["cnn_jobs.attempt"]) == ("FINISHED", "2")
    assert parent.data.tags["mlflow.note.content"].endswith("- seed3\n")


@pytest.mark.parametrize(("note", "code"), [("", 75), ("finished before; nothing was trained", 1)])
def test_a_signal_as_a_run_is_finished_starts_no_other(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch, note: str, code: int
) -> None:
    """It is noted while the run is delivered; exit 75 only where something was trained."""
    stop = StopRequest()
    started = ending(None, monkeypatch, stop, note)
    results, errors, _ = call(mlflow_uri, tmp_path, tiny_dataset, stop, run_key="series")
    assert (results, started) == ([0, 1], [0, 1])
    (error,) = errors
    assert isinstance(error, InterruptedRunError)
    assert (error.exit_code, error.run_key) == (code, "series")
    assert exit_code(errors) == code
    assert only_run(mlflow_uri).info.status == "KILLED"


def test_an_end_that_mlflow_does_not_take_is_told(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(None, monkeypatch)
    given = options(unused_address(), tmp_path, run_key="series", ship_deadline_s=0.1)
    results, errors = train_series(session_of(TASK, given, tiny_dataset), PLANNED, [].append)
    assert len(results) == 3
    (error,) = errors
    assert isinstance(error, NotShippedError)
    assert (error.exit_code, error.run_key) == (75, "series")
    done = replay(tmp_path / "state" / "series", mlflow_uri, 30)
    assert done.status == only_run(mlflow_uri).info.status == "FINISHED"


def test_runs_that_are_not_sent_keep_the_parents_end_back(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(NotShippedError("the training is complete, but", kept=True), monkeypatch)
    _, errors, _ = call(mlflow_uri, tmp_path, tiny_dataset, run_key="series")
    assert [type(error) for error in errors] == [NotShippedError, NotShippedError]
    assert errors[-1].run_key == "series"
    assert only_run(mlflow_uri).info.status == "RUNNING"
    assert replay(tmp_path / "state" / "series", mlflow_uri, 30).status == "FINISHED"
    assert only_run(mlflow_uri).info.status == "FINISHED"


def test_a_wrong_call_of_a_finished_series_changes_nothing(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(None, monkeypatch)
    call(mlflow_uri, tmp_path, tiny_dataset, run_key="series")
    before = only_run(mlflow_uri)
    ending(CheckpointMismatchError("of another recipe"), monkeypatch)
    _, errors, _ = call(mlflow_uri, tmp_path, tiny_dataset, run_key="series")
    assert exit_code(errors) == 2
    after = only_run(mlflow_uri)
    assert (after.info.status, after.info.end_time, after.data.tags) == (
        "FINISHED",
        before.info.end_time,
        before.data.tags,
    )


@pytest.mark.parametrize("lost", [False, True], ids=["state-kept", "state-lost"])
def test_the_key_of_a_series_is_none_for_one_run_and_the_other_way_round(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    recipe = replace(TASK.recipe, epochs=1, batch_size=8)

    def one(key: str) -> None:
        train_run(TASK, recipe, options(mlflow_uri, tmp_path, run_key=key), tiny_dataset)

    def lose() -> None:
        if lost:
            shutil.rmtree(tmp_path / "state")

    with monkeypatch.context() as patch:
        ending(None, patch)
        call(mlflow_uri, tmp_path, tiny_dataset, run_key="series")
    lose()
    with pytest.raises(CheckpointMismatchError, match="is a series of runs, but this command is for a single run") as e:
        one("series")
    assert e.value.exit_code == 2
    one("single")
    lose()
    with pytest.raises(CheckpointMismatchError, match="is a single run, but this command is for a series of runs"):
        call(mlflow_uri, tmp_path, tiny_dataset, run_key="single")


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([], 0),
        ([DivergedError()], 2),
        ([TrackingError()], 1),
        ([DivergedError(), RecipeError()], 2),
        ([DivergedError(), TrackingError()], 1),  # one of them may work another time
        ([InterruptedRunError()], 1),
        ([InterruptedRunError(saved=True)], 75),
        ([DivergedError(), InterruptedRunError(saved=True)], 75),  # the others of the series are still to come
        ([TrackingError(), InterruptedRunError(saved=True)], 75),
        ([NotShippedError("", kept=True)], 75),
        ([NotShippedError("", kept=True), DivergedError()], 75),
        ([NotShippedError("", kept=True), TrackingError()], 1),
        ([NotShippedError("", kept=False)], 1),
    ],
)
def test_the_exit_code_of_a_series(errors: list[CnnJobsError], code: int) -> None:
    assert exit_code(errors) == code
