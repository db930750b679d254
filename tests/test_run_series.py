"""Several runs below a parent: what the parent says when they end in other ways than well."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cnn_jobs import run_series as module
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.errors import DivergedError, InterruptedRunError
from cnn_jobs.run import JobOptions
from cnn_jobs.run_series import run_series
from cnn_jobs.series import Planned
from cnn_jobs.stop import StopRequest
from cnn_jobs.tasks import TASKS
from tests.test_job import Watcher, only_run, options

TASK = TASKS["task2"]
PLANNED = [Planned(f"seed{seed}", replace(TASK.recipe, seed=seed)) for seed in range(3)]


def ending(error: BaseException | None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes the second run end with ``error``; returns the seeds that are started."""
    started: list[int] = []

    def run_task(task: Any, recipe: Any, options: JobOptions, *rest: Any) -> Any:
        started.append(recipe.seed)
        assert options.parent_key
        assert options.run_key == f"{options.parent_key}-seed{recipe.seed}"
        assert options.run_name == f"task2-seed{recipe.seed}"
        if recipe.seed == 1 and error:
            raise error
        return recipe.seed

    monkeypatch.setattr(module, "run_task", run_task)
    return started


def call(uri: str, tmp_path: Path, dataset: Dataset, stop: StopRequest | None = None, **more: Any) -> Any:
    lines: list[str] = []
    results, errors = run_series(
        TASK, PLANNED, options(uri, tmp_path, **more), dataset, Watcher(), stop or StopRequest(), lines.append
    )
    return results, errors, lines


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
    stop.signal_name = "SIGTERM"
    started = ending(InterruptedRunError("stopped by SIGTERM"), monkeypatch)
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
            shutil.rmtree(tmp_path / "state")
    monkeypatch.setattr(f"{__name__}.PLANNED", [*PLANNED, Planned("seed3", replace(TASK.recipe, seed=3))])
    assert call(mlflow_uri, tmp_path, tiny_dataset, run_key="series") == ([0, 1, 2, 3], [], [])
    parent = only_run(mlflow_uri)
    assert (parent.info.status, parent.data.tags["cnn_jobs.attempt"]) == ("FINISHED", "3")
    assert parent.data.tags["mlflow.note.content"].endswith("- seed3\n")
