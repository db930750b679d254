"""A run that continues."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.errors import CheckpointMismatchError, InterruptedRunError, RunMismatchError
from cnn_jobs.runs import resume
from cnn_jobs.runs.record import with_defaults
from cnn_jobs.tracking.connection import OutageError
from cnn_jobs.training.checkpoint import load_checkpoint
from tests.helpers.datasets import striped_dataset
from tests.helpers.runs import RECIPE, RecordingObserver, cheap_outputs, options, train_run
from tests.helpers.tracking import client, only_run, rows
from tests.helpers.training import STATE, differences

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _cheap_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_outputs(monkeypatch)


@pytest.mark.parametrize("lost", [False, True], ids=["state-kept", "state-lost"])
def test_interrupted_run_resumes_to_the_same_bits(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, lost: bool
) -> None:
    reference = train_run(options(mlflow_uri, tmp_path, run_key="reference"), tiny_dataset)
    own = options(mlflow_uri, tmp_path, run_key="key")
    with pytest.raises(InterruptedRunError):
        train_run(own, tiny_dataset, observer=RecordingObserver(stop_after=3))
    if lost:
        shutil.rmtree(tmp_path / "state" / "key")
    resumed = train_run(own, tiny_dataset)
    assert resumed.metrics == reference.metrics
    for key in ("train/loss", "val/loss", "val/accuracy"):
        assert rows(mlflow_uri, resumed.run_id, key) == rows(mlflow_uri, reference.run_id, key)
    states = [load_checkpoint(tmp_path / "state" / key / "checkpoints" / "last.pt") for key in ("reference", "key")]
    assert differences(*({name: state[name] for name in STATE} for state in states)) == []
    run = client(mlflow_uri).get_run(resumed.run_id)
    assert (run.info.status, run.data.tags["cnn_jobs.attempt"]) == ("FINISHED", "2")


def test_run_that_continues_with_other_convolutions_is_tagged(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset
) -> None:
    with pytest.raises(InterruptedRunError):
        train_run(options(mlflow_uri, tmp_path, run_key="key"), tiny_dataset, observer=RecordingObserver(stop_after=3))
    observer = RecordingObserver()
    train_run(options(mlflow_uri, tmp_path, run_key="key", fast_convolutions=False), tiny_dataset, observer=observer)
    text = "attempt 2 continued at step 3 with other convolutions fast -> torch's own"
    assert f"{text}: the result may differ" in observer.warnings
    assert only_run(mlflow_uri).data.tags["cnn_jobs.continued_elsewhere"] == text


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu: AMD", {"processes": 1, "convolutions": "fast, of an earlier version"}),
        ("cuda: NVIDIA H200", {"processes": 1}),
    ],
)
def test_old_checkpoints_get_the_values_of_their_version(device: str, expected: dict[str, object]) -> None:
    assert with_defaults({"device": device}) == {"device": device, **expected}
    newer = {"device": device, "processes": 2, "convolutions": "fast"}
    assert with_defaults(newer) == newer


@pytest.mark.parametrize("change", ["data", "recipe", "role"])
def test_run_of_another_kind_is_not_continued_after_an_outage(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """MLflow did not answer at the start: the comparison comes later, before anything is written."""
    with pytest.raises(InterruptedRunError):
        train_run(options(mlflow_uri, tmp_path, run_key="key"), tiny_dataset, observer=RecordingObserver(stop_after=3))
    run_id = only_run(mlflow_uri).info.run_id
    if change == "role":
        client(mlflow_uri).set_tag(run_id, "cnn_jobs.role", "parent")
    before = only_run(mlflow_uri)

    def unreachable(*arguments: object) -> None:
        raise OutageError("MLflow does not answer")

    monkeypatch.setattr(resume, "find_run", unreachable)
    own = options(mlflow_uri, tmp_path / "elsewhere", run_key="key")
    dataset = striped_dataset(seed=1) if change == "data" else tiny_dataset
    recipe = replace(RECIPE, lr=0.5) if change == "recipe" else RECIPE
    observer = RecordingObserver()
    with pytest.raises(RunMismatchError, match=f"run {run_id} in MLflow .* use another --run-key") as caught:
        train_run(own, dataset, recipe=recipe, observer=observer)
    assert caught.value.exit_code == 2
    after = only_run(mlflow_uri)
    assert (after.info.status, after.data.tags, after.data.metrics) == ("KILLED", before.data.tags, before.data.metrics)
    assert after.data.params == before.data.params
    assert len(rows(mlflow_uri, run_id, "train/loss")) == 3
    assert observer.ended == ["superseded"]


def test_key_of_another_recipe_or_data_set_is_refused(mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset) -> None:
    own = options(mlflow_uri, tmp_path, run_key="key")
    train_run(own, tiny_dataset)
    with pytest.raises(CheckpointMismatchError, match="recipe_hash") as caught:
        train_run(own, tiny_dataset, recipe=replace(RECIPE, lr=0.5))
    assert caught.value.exit_code == 2
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(CheckpointMismatchError, match="data_digest"):
        train_run(own, striped_dataset(seed=1))
    assert only_run(mlflow_uri).info.status == "FINISHED"
