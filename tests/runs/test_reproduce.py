"""A recorded run is trained again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cnn_jobs.data.prepared import read_prepared, write_prepared
from cnn_jobs.errors import DataError, ReproductionError, UserError
from cnn_jobs.runs import record, setup
from cnn_jobs.runs.reproduce import Comparison, reproduce
from cnn_jobs.system import environment
from cnn_jobs.system.signals import StopRequest
from tests.helpers.datasets import striped_dataset
from tests.helpers.runs import RecordingObserver, cheap_outputs, options, train_run
from tests.helpers.tracking import client, fetch, runs_in

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run_id(mlflow_uri: str, tmp_path: Path, small_file: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A finished run on the data set in ``small_file``."""
    cheap_outputs(monkeypatch)
    return train_run(options(mlflow_uri, tmp_path), read_prepared(small_file, uri=str(small_file))).run_id


def again(uri: str, run_id: str, data: str = "") -> list[Comparison]:
    return reproduce(uri, run_id, data, RecordingObserver(), StopRequest())


def test_reproduced_run_is_identical(mlflow_uri: str, run_id: str) -> None:
    comparisons = again(mlflow_uri, run_id)
    assert [each.differences for each in comparisons] == [()] * 4
    compared = {each.what: each.compared for each in comparisons}
    # 8 losses, 4 validations of two figures, 12 final figures and the best step.
    assert compared["metric rows"] == 8 + 4 * 2 + 13
    assert compared["weights at the end"] > 10
    assert compared["optimiser at the end"] > 20
    assert compared["best weights"] == compared["weights at the end"]
    assert len(runs_in(mlflow_uri)) == 1


def test_differences_are_named(mlflow_uri: str, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client(mlflow_uri).log_metric(run_id, "train/loss", 9.0, step=99)
    real = setup.new_state

    def changed(*args: Any, **settings: Any) -> Any:
        state = real(*args, **settings)
        with torch.no_grad():
            next(state.model.parameters())[0, 0, 0, 0] += 1e-6
        return state

    monkeypatch.setattr(setup, "new_state", changed)
    rows, weights, optimizer, best = again(mlflow_uri, run_id)
    assert "train/loss at step 99: [9.0], again None" in rows.differences
    assert weights.differences
    assert optimizer.differences
    assert best.differences


def test_torchs_convolutions_are_reproduced(
    mlflow_uri: str, tmp_path: Path, small_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cheap_outputs(monkeypatch)
    own = options(mlflow_uri, tmp_path, fast_convolutions=False)
    run_id = train_run(own, read_prepared(small_file, uri=str(small_file))).run_id
    artifacts = fetch(mlflow_uri, run_id, tmp_path / "artifacts")
    assert json.loads((artifacts / "lineage.json").read_text())["convolutions"] == "torch's own"
    assert not [each for each in again(mlflow_uri, run_id) if each.differences]


def test_convolutions_of_an_earlier_version_are_refused(
    mlflow_uri: str, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = record.machine
    monkeypatch.setattr(record, "machine", lambda run: {**real(run), "convolutions": "of a later version"})
    with pytest.raises(ReproductionError, match=r"convolutions were fast, here they are of a later .*install the code"):
        again(mlflow_uri, run_id)


def test_other_data_is_refused(mlflow_uri: str, run_id: str, tmp_path: Path, small_file: Path) -> None:
    other, moved = tmp_path / "other.npz", tmp_path / "moved.npz"
    write_prepared(striped_dataset(seed=1), other, compressed=False)
    with pytest.raises(ReproductionError, match="digest") as caught:
        again(mlflow_uri, run_id, str(other))
    assert caught.value.exit_code == 2
    small_file.rename(moved)
    with pytest.raises(DataError, match="no such file"):
        again(mlflow_uri, run_id)
    assert not [each for each in again(mlflow_uri, run_id, str(moved)) if each.differences]


def test_run_that_cannot_be_identical_is_refused(mlflow_uri: str, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for tag, value in (
        ("cnn_jobs.deterministic", "True"),
        ("cnn_jobs.continued_elsewhere", ""),
        ("cnn_jobs.recipe_hash", client(mlflow_uri).get_run(run_id).data.tags["cnn_jobs.recipe_hash"]),
    ):
        client(mlflow_uri).set_tag(run_id, tag, "False")
        with pytest.raises(ReproductionError):
            again(mlflow_uri, run_id)
        client(mlflow_uri).set_tag(run_id, tag, value)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 7)
        with pytest.raises(ReproductionError, match="used 1 threads, torch takes only 7 here"):
            again(mlflow_uri, run_id)
    real = environment.version_of
    monkeypatch.setattr(environment, "version_of", lambda name: "9.9" if name == "torch" else real(name))
    monkeypatch.setattr(environment, "cpu_name", lambda: "another CPU")
    with pytest.raises(ReproductionError, match=r"cpu was .*, here it is another CPU; .*torch was .*, here it is 9\.9"):
        again(mlflow_uri, run_id)
    client(mlflow_uri).set_terminated(run_id, "FAILED")
    with pytest.raises(UserError, match="is FAILED; only a finished run"):
        again(mlflow_uri, run_id)


def test_missing_run_is_a_one_line_error(mlflow_uri: str) -> None:
    with pytest.raises(UserError, match=r"run abc: MLflow at .* refused: .*abc.* not found"):
        again(mlflow_uri, "abc")
