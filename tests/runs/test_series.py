"""Several runs below a parent run, which ends in each way that they can end."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
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
from cnn_jobs.runs import series as series_module
from cnn_jobs.runs.series import exit_code, train_series
from cnn_jobs.runs.setup import RunResult, Session
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking.replay import replay
from tests.helpers.runs import cheap_outputs, options, session_of, train_run
from tests.helpers.servers import unused_url
from tests.helpers.tracking import only_run, status_of

TASK = TASKS["task2"]
PLANNED = [Planned(f"seed{seed}", replace(TASK.recipe, seed=seed)) for seed in range(4)]
NOT_SENT = NotShippedError("the training is complete, but", kept=True)
Call = Callable[..., tuple[list[int], list[CnnJobsError], list[str]]]


class Runs:
    """Replaces ``train_run``: the run of seed 1 ends with ``error``, or after a signal. ``started`` lists the seeds."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.signal: signal.Signals | None = None
        self.note = ""
        self.started: list[int] = []

    def __call__(self, session: Session, recipe: Any) -> RunResult:
        options, seed = session.options, recipe.seed
        assert (options.run_key, options.run_name) == (f"{options.parent_key}-seed{seed}", f"task2-seed{seed}")
        self.started.append(seed)
        if seed == 1:
            if self.signal:
                session.stop.record(self.signal)
            if self.error:
                raise self.error
        return RunResult(
            run_id="",
            url="",
            name="",
            recipe=recipe,
            metrics={},
            steps=1,
            stopped_early=False,
            seconds=0.0,
            note=self.note,
        )


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    runs = Runs()
    monkeypatch.setattr(series_module, "train_run", runs)
    return runs


@pytest.fixture
def call(mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset) -> Call:
    """Trains a series of ``count`` runs; returns the seeds of its results, its errors, and the reported lines."""

    def call(uri: str = mlflow_uri, *, count: int = 3, stop: StopRequest | None = None, **more: Any) -> Any:
        lines: list[str] = []
        session = session_of(options(uri, tmp_path, **more), tiny_dataset, TASK, stop=stop)
        results, errors = train_series(session, PLANNED[:count], lines.append)
        return [each.recipe.seed for each in results], errors, lines

    return call


def parent_status(uri: str) -> tuple[str, str, str]:
    return status_of(uri, only_run(uri).info.run_id)


def test_finished_runs_finish_the_parent(mlflow_uri: str, runs: Runs, call: Call) -> None:
    assert call() == ([0, 1, 2], [], [])
    assert parent_status(mlflow_uri)[0] == "FINISHED"
    assert only_run(mlflow_uri).data.tags["cnn_jobs.role"] == "parent"


def test_failed_run_is_reported_at_once_and_the_series_continues(mlflow_uri: str, runs: Runs, call: Call) -> None:
    runs.error = DivergedError("too fast")
    results, errors, lines = call()
    assert (results, runs.started, lines) == ([0, 2], [0, 1, 2], ["seed1: too fast"])
    assert errors == [runs.error]
    assert parent_status(mlflow_uri) == ("FAILED", "diverged", "too fast")


def test_signal_ends_the_series(mlflow_uri: str, runs: Runs, call: Call) -> None:
    runs.signal, runs.error = signal.SIGTERM, InterruptedRunError("stopped by SIGTERM")
    assert (call()[0], runs.started) == ([0], [0, 1])
    assert parent_status(mlflow_uri)[:2] == ("KILLED", "interrupted")


def test_bug_in_a_run_fails_the_parent(mlflow_uri: str, runs: Runs, call: Call) -> None:
    runs.error = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        call()
    assert parent_status(mlflow_uri) == ("FAILED", "failed", "ZeroDivisionError: a bug")


@pytest.mark.parametrize("lost", [False, True], ids=["state-kept", "state-lost"])
def test_finished_series_can_be_called_again_and_extended(
    mlflow_uri: str, tmp_path: Path, runs: Runs, call: Call, lost: bool
) -> None:
    for count, attempt in ((3, "1"), (3, "1"), (4, "2")):  # the second call has nothing to do
        assert call(count=count, run_key="series") == (list(range(count)), [], [])
        parent = only_run(mlflow_uri)
        assert (parent.info.status, parent.data.tags["cnn_jobs.attempt"]) == ("FINISHED", attempt)
        assert parent.data.tags["mlflow.note.content"].endswith(f"- seed{count - 1}\n")
        if lost:
            shutil.rmtree(tmp_path / "state", ignore_errors=True)


@pytest.mark.parametrize(("note", "code"), [("", 75), ("finished before; nothing was trained", 1)])
def test_signal_at_the_end_of_a_run_starts_no_other(
    mlflow_uri: str, runs: Runs, call: Call, note: str, code: int
) -> None:
    """Exit code 75 only where something was trained."""
    runs.signal, runs.note = signal.SIGTERM, note
    results, errors, _ = call(run_key="series")
    assert (results, runs.started) == ([0, 1], [0, 1])
    (error,) = errors
    assert isinstance(error, InterruptedRunError)
    assert (error.exit_code, error.run_key) == (code, "series")
    assert exit_code(errors) == code
    assert parent_status(mlflow_uri)[0] == "KILLED"


def test_unsent_parent_is_reported_and_replayed(
    mlflow_uri: str, tmp_path: Path, runs: Runs, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series_module, "look_up_timeout_s", lambda: 0.1)
    results, (error,), _ = call(unused_url(), run_key="series", ship_deadline_s=0.1)
    assert len(results) == 3
    assert isinstance(error, NotShippedError)
    assert (error.exit_code, error.run_key) == (75, "series")
    replayed = replay(tmp_path / "state" / "series", mlflow_uri, 30)
    assert replayed.status == parent_status(mlflow_uri)[0] == "FINISHED"


def test_parent_of_unsent_runs_finishes_with_its_replay(
    mlflow_uri: str, tmp_path: Path, runs: Runs, call: Call
) -> None:
    runs.error = NOT_SENT
    _, errors, _ = call(run_key="series")
    assert [type(error) for error in errors] == [NotShippedError, NotShippedError]
    assert errors[-1].run_key == "series"
    assert parent_status(mlflow_uri)[0] == "RUNNING"
    assert replay(tmp_path / "state" / "series", mlflow_uri, 30).status == "FINISHED"
    assert parent_status(mlflow_uri)[0] == "FINISHED"


def test_refused_call_does_not_change_a_finished_series(mlflow_uri: str, runs: Runs, call: Call) -> None:
    call(run_key="series")
    before = only_run(mlflow_uri)
    runs.error = CheckpointMismatchError("of another recipe")
    assert exit_code(call(run_key="series")[1]) == 2
    after = only_run(mlflow_uri)
    assert (after.info.status, after.info.end_time) == ("FINISHED", before.info.end_time)
    assert after.data.tags == before.data.tags


@pytest.mark.parametrize("lost", [False, True], ids=["state-kept", "state-lost"])
def test_keys_of_series_and_single_runs_are_not_interchangeable(
    mlflow_uri: str,
    tmp_path: Path,
    tiny_dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    runs: Runs,
    call: Call,
    lost: bool,
) -> None:
    cheap_outputs(monkeypatch)
    recipe = replace(TASK.recipe, epochs=1, batch_size=8)

    def single(key: str) -> None:
        train_run(options(mlflow_uri, tmp_path, run_key=key), tiny_dataset, TASK, recipe)

    call(run_key="series")
    if lost:
        shutil.rmtree(tmp_path / "state")
    with pytest.raises(CheckpointMismatchError, match="is a series of runs, but this command is for a single run") as e:
        single("series")
    assert e.value.exit_code == 2
    single("single")
    if lost:
        shutil.rmtree(tmp_path / "state")
    with pytest.raises(CheckpointMismatchError, match="is a single run, but this command is for a series of runs"):
        call(run_key="single")


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
        ([DivergedError(), InterruptedRunError(saved=True)], 75),  # the other runs are still to come
        ([TrackingError(), InterruptedRunError(saved=True)], 75),
        ([NOT_SENT], 75),
        ([NOT_SENT, DivergedError()], 75),
        ([NOT_SENT, TrackingError()], 1),
        ([NotShippedError("", kept=False)], 1),
    ],
)
def test_exit_code_of_a_series(errors: list[CnnJobsError], code: int) -> None:
    assert exit_code(errors) == code
