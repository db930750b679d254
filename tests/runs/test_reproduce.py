"""A run trained again from what it recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import read_prepared, write_prepared
from cnn_jobs.errors import DataError, ReproductionError, UserError
from cnn_jobs.runs import setup
from cnn_jobs.runs.reproduce import Comparison, reproduce
from cnn_jobs.runs.setup import RunResult
from cnn_jobs.system import environment
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tasks import TASKS
from tests.conftest import striped_dataset
from tests.helpers.runs import RecordingObserver, client, options, train_run

# MLflow and torch.export raise warnings of their own when a model is saved.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("one_thread")]

TASK = TASKS["task3-arch2"]  # BatchNorm, dropout and Adam
RECIPE = replace(TASK.recipe, epochs=2, batch_size=9)


@pytest.fixture
def recorded(mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset) -> RunResult:
    """A finished run on a data set that lies in a file."""
    path = tmp_path / "small.npz"
    write_prepared(tiny_dataset, path, compressed=False)
    dataset = read_prepared(path, uri=str(path))
    return train_run(TASK, RECIPE, options(mlflow_uri, tmp_path), dataset, RecordingObserver(), StopRequest())


def again(uri: str, run_id: str, data: str = "") -> list[Comparison]:
    return reproduce(uri, run_id, data, RecordingObserver(), StopRequest())


def test_the_same_recipe_seed_and_data_give_the_same_run(mlflow_uri: str, recorded: RunResult) -> None:
    comparisons = again(mlflow_uri, recorded.run_id)
    assert [each.differences for each in comparisons] == [()] * 4
    compared = {each.what: each.compared for each in comparisons}
    # 8 losses, 4 validations of two figures, 12 final figures and the best step.
    assert compared["metric rows"] == 8 + 4 * 2 + 13
    assert compared["weights at the end"] > 10
    assert compared["optimiser at the end"] > 20
    assert compared["best weights"] == compared["weights at the end"]
    assert len(client(mlflow_uri).search_runs([client(mlflow_uri).get_run(recorded.run_id).info.experiment_id])) == 1


def test_what_differs_is_named(mlflow_uri: str, recorded: RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    client(mlflow_uri).log_metric(recorded.run_id, "train/loss", 9.0, step=99)
    real = setup.new_state

    def nudged(*args: Any) -> Any:
        state = real(*args)
        with torch.no_grad():
            next(state.model.parameters())[0, 0, 0, 0] += 1e-6
        return state

    monkeypatch.setattr(setup, "new_state", nudged)
    rows, weights, optimizer, best = again(mlflow_uri, recorded.run_id)
    assert "train/loss at step 99: [9.0], again None" in rows.differences
    assert weights.differences
    assert optimizer.differences
    assert best.differences


def test_other_data_is_refused(mlflow_uri: str, recorded: RunResult, tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    write_prepared(striped_dataset(seed=1), other, compressed=False)
    with pytest.raises(ReproductionError, match="digest") as caught:
        again(mlflow_uri, recorded.run_id, str(other))
    assert caught.value.exit_code == 2
    (tmp_path / "small.npz").rename(tmp_path / "moved.npz")
    with pytest.raises(DataError, match="no such file"):
        again(mlflow_uri, recorded.run_id)
    assert not [each for each in again(mlflow_uri, recorded.run_id, str(tmp_path / "moved.npz")) if each.differences]


@pytest.mark.parametrize("tag", ["cnn_jobs.deterministic", "cnn_jobs.continued_elsewhere", "cnn_jobs.recipe_hash"])
def test_a_run_that_cannot_come_out_the_same_is_refused(mlflow_uri: str, recorded: RunResult, tag: str) -> None:
    client(mlflow_uri).set_tag(recorded.run_id, tag, "False")
    with pytest.raises(ReproductionError):
        again(mlflow_uri, recorded.run_id)


def test_another_version_is_refused_by_name(
    mlflow_uri: str, recorded: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = environment.version_of
    monkeypatch.setattr(environment, "version_of", lambda name: "9.9" if name == "torch" else real(name))
    monkeypatch.setattr(environment, "cpu_name", lambda: "another CPU")
    with pytest.raises(ReproductionError, match=r"cpu was .*, here it is another CPU; .*torch was .*, here it is 9\.9"):
        again(mlflow_uri, recorded.run_id)


def test_a_run_that_is_not_finished_is_refused(mlflow_uri: str, recorded: RunResult) -> None:
    client(mlflow_uri).set_terminated(recorded.run_id, "FAILED")
    with pytest.raises(UserError, match="is FAILED; only a finished run"):
        again(mlflow_uri, recorded.run_id)


def test_a_run_that_is_not_there_is_one_line(mlflow_uri: str) -> None:
    with pytest.raises(UserError, match=r"run abc: MLflow at .* refused: .*abc.* not found"):
        again(mlflow_uri, "abc")


def test_threads_that_cannot_be_had_are_refused(
    mlflow_uri: str, recorded: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    with pytest.raises(ReproductionError, match="used 1 threads, torch takes only 7 here"):
        again(mlflow_uri, recorded.run_id)
