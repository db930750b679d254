"""Runs read back from MLflow."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from cnn_jobs.errors import TrackingError, UserError
from cnn_jobs.tracking import run_reader
from cnn_jobs.tracking.run_reader import Curve, runs_of, thinned
from tests.helpers.servers import answering
from tests.helpers.tracking import finish, recording


def finish_run(uri: str, tags: dict[str, str]) -> str:
    with recording(uri, Path("state"), key=uuid.uuid4().hex, tags=tags) as recorder:
        recorder.metrics({"last/test_accuracy": 0.5}, 7)
        recorder.params({"lr": 0.1})
        assert finish(recorder)
    return recorder.run_id


def test_runs_are_listed_oldest_first_without_parents_and_foreign_runs(mlflow_uri: str) -> None:
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
    with pytest.raises(UserError, match="experiment 'nope' is not in MLflow; there are: Default, tests"):
        runs_of(mlflow_uri, "nope")


def test_refusal_is_an_error() -> None:
    with answering(404) as uri, pytest.raises(TrackingError, match="answered 404"):
        runs_of(uri, "tests")


def test_failed_download_is_repeated(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    run_id = finish_run(mlflow_uri, {"cnn_jobs.task": "task2"})
    Path("lineage.json").write_text('{"packages": {"torch": "2"}}')
    MlflowClient(mlflow_uri).log_artifact(run_id, "lineage.json")
    download, wanted = MlflowClient.download_artifacts, []

    def fail_once(self: MlflowClient, *given: object) -> object:
        wanted.append(given[1])
        if wanted.count("lineage.json") == 1 and given[1] == "lineage.json":
            raise ConnectionError("reset")
        return download(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(MlflowClient, "download_artifacts", fail_once)
    monkeypatch.setattr(run_reader, "BETWEEN_TRIES_S", 0.0)
    source = run_reader.RunReader(mlflow_uri)
    (run,) = source.complete(source.experiment("tests").runs, lambda: None)
    assert run.versions["torch"] == "2"
    assert wanted.count("lineage.json") == 2
    assert "it has no confusion.csv" in run.lacking


def test_training_losses_are_averaged_between_validations() -> None:
    losses = Curve(tuple(range(1, 8)), (1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 100.0))
    assert thinned(losses, (2, 6)) == Curve((2, 6), (2.0, 8.0))
    assert thinned(Curve(), (2, 6)) == Curve()
