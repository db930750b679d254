"""The monitor of a whole run shows what MLflow has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.errors import CnnJobsError, DivergedError, InterruptedRunError
from cnn_jobs.monitoring.monitor import Monitor
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.training.observer import Phase, fan_out
from tests.helpers.runs import RECIPE, TASK, RecordingObserver, client, only_run, options, train_run
from tests.monitoring.pages import page_of, samples

pytestmark = pytest.mark.filterwarnings("default")


class Phases(Monitor):
    """Keeps every phase that it entered."""

    def __init__(self) -> None:
        super().__init__(TASK.name)
        self.shown: list[Phase] = []

    def _enter(self, phase: Phase) -> None:
        super()._enter(phase)
        self.shown.append(phase)


def test_a_run_as_the_monitor_and_as_mlflow_has_it(mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset) -> None:
    monitor = Phases()
    result = train_run(
        TASK, RECIPE, options(mlflow_uri, tmp_path), tiny_dataset, fan_out(monitor, RecordingObserver()), StopRequest()
    )
    found, page = client(mlflow_uri).get_run(result.run_id).data, samples(page_of(monitor))
    assert page["cnn_jobs_step",] == page["cnn_jobs_planned_steps",] == result.steps
    assert page["cnn_jobs_epoch",] == page["cnn_jobs_planned_epochs",] == RECIPE.epochs
    assert page["cnn_jobs_images_total",] == result.steps * RECIPE.batch_size
    for metric, name in (
        ("train/loss", "cnn_jobs_train_loss"),
        ("val/loss", "cnn_jobs_validation_loss"),
        ("val/accuracy", "cnn_jobs_validation_accuracy_ratio"),
        ("train/images_per_second", "cnn_jobs_train_images_per_second"),
    ):
        assert page[name,] == found.metrics[metric]
    assert page["cnn_jobs_steps_total", "useful"] == found.metrics["ledger/steps"]
    assert page["cnn_jobs_device_seconds_total", "useful"] == pytest.approx(found.metrics["ledger/device_seconds"])
    assert page["cnn_jobs_journal_backlog_records",] == 0
    assert page["cnn_jobs_runs_ended_total", "finished"] == 1
    assert list(dict.fromkeys(monitor.shown)) == [
        Phase.STARTING, Phase.TRAINING, Phase.EVALUATION, Phase.OUTPUTS, Phase.SHIPPING, Phase.ENDED,
    ]  # fmt: skip
    key = found.tags["cnn_jobs.run_key"]
    assert monitor.log_context() == {"task": TASK.name, "run_key": key, "attempt": 1, "step": result.steps}


def test_a_resumed_attempt_counts_those_before_it(mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset) -> None:
    stop = StopRequest()
    own, first = options(mlflow_uri, tmp_path, run_key="k", key_from_job=True), Monitor(TASK.name)

    with pytest.raises(InterruptedRunError):
        train_run(TASK, RECIPE, own, tiny_dataset, fan_out(first, RecordingObserver(stop, after=3)), stop)
    assert samples(page_of(first))["cnn_jobs_runs_ended_total", "interrupted"] == 1
    second = Monitor(TASK.name)
    result = train_run(TASK, RECIPE, own, tiny_dataset, fan_out(second, RecordingObserver()), StopRequest())
    page = samples(page_of(second))
    assert page["cnn_jobs_attempts_total",] == 2
    assert page["cnn_jobs_steps_total", "useful"] == result.steps
    assert page["cnn_jobs_images_total",] == (result.steps - 3) * RECIPE.batch_size
    assert page["cnn_jobs_runs_ended_total", "finished"] == 1


def test_a_run_that_diverges_ends_as_that(mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset) -> None:
    monitor = Monitor(TASK.name)
    recipe = replace(RECIPE, lr=1e20)
    with pytest.raises(DivergedError):
        train_run(
            TASK,
            recipe,
            options(mlflow_uri, tmp_path),
            tiny_dataset,
            fan_out(monitor, RecordingObserver()),
            StopRequest(),
        )
    assert {state: count for state, count in monitor.ended.items() if count} == {"diverged": 1}
    assert only_run(mlflow_uri).data.tags["cnn_jobs.state"] == "diverged"


def test_a_run_that_another_attempt_trains_ends_as_superseded(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset
) -> None:
    from cnn_jobs.system.lock import RunLock

    monitor, own = Monitor(TASK.name), options(mlflow_uri, tmp_path, run_key="k")
    lock = RunLock(own.state_dir / "k")
    try:
        with pytest.raises(CnnJobsError):
            train_run(TASK, RECIPE, own, tiny_dataset, fan_out(monitor, RecordingObserver()), StopRequest())
    finally:
        lock.release()
    assert {state: count for state, count in monitor.ended.items() if count} == {"superseded": 1}
