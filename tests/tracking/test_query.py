"""Runs read back."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from cnn_jobs.errors import TrackingError, UserError
from cnn_jobs.tracking.query import runs_of
from tests.tracking.conftest import finish, recording
from tests.tracking.test_connection import answering


def finish_run(uri: str, tags: dict[str, str]) -> str:
    with recording(uri, Path("state"), key=uuid.uuid4().hex, tags=tags) as recorder:
        recorder.metrics({"last/test_accuracy": 0.5}, 7)
        recorder.params({"lr": 0.1})
        assert finish(recorder)
    return recorder.run_id


def test_runs_come_oldest_first_without_parents_and_strangers(mlflow_uri: str) -> None:
    first = finish_run(mlflow_uri, {"cnn_jobs.task": "task2"})
    finish_run(mlflow_uri, {"cnn_jobs.task": "task2", "cnn_jobs.role": "parent"})
    finish_run(mlflow_uri, {"someone": "else"})
    second = finish_run(mlflow_uri, {"cnn_jobs.task": "task3e"})
    rows = runs_of(mlflow_uri, "tests")
    assert [row.run_id for row in rows] == [first, second]
    assert rows[0].metrics == {"last/test_accuracy": 0.5}
    assert rows[0].params == {"lr": "0.1"}
    assert rows[0].status == "FINISHED"
    assert [row.run_id for row in runs_of(mlflow_uri, "tests", "task3e")] == [second]


def test_an_unknown_experiment_names_those_there_are(mlflow_uri: str) -> None:
    finish_run(mlflow_uri, {})
    with pytest.raises(UserError, match="experiment 'nope' is not in MLflow; there are: Default, tests"):
        runs_of(mlflow_uri, "nope")


def test_a_refusal_is_one_line() -> None:
    with answering(404) as uri, pytest.raises(TrackingError, match="answered 404"):
        runs_of(uri, "tests")
