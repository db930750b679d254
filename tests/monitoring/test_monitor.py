"""The monitor of a process: during a whole run, and while its page waits for the last scrape."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.errors import CnnJobsError, DataError, DivergedError, InterruptedRunError
from cnn_jobs.local_server.server import free_port
from cnn_jobs.monitoring import metrics
from cnn_jobs.monitoring.monitor import Monitor, MonitoringOptions, monitored
from cnn_jobs.runs.setup import RunResult
from cnn_jobs.system.lock import RunLock
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.training.observer import Phase, fan_out
from tests.helpers.metrics_pages import Samples, live_attempt, page_of, samples
from tests.helpers.runs import RECIPE, TASK, RecordingObserver, cheap_outputs, options, train_run
from tests.helpers.tracking import client, only_run

# -- whole runs --------------------------------------------------------------------------------------------------------


class Phases(Monitor):
    """Keeps every phase that it entered."""

    def __init__(self) -> None:
        super().__init__(TASK.name)
        self.entered: list[Phase] = []

    def _enter(self, phase: Phase) -> None:
        super()._enter(phase)
        self.entered.append(phase)


def train(own: Any, dataset: Dataset, monitor: Monitor, recipe: Any = RECIPE, stop_after: int = 0) -> RunResult:
    observer = RecordingObserver(stop_after)
    return train_run(own, dataset, recipe=recipe, observer=fan_out(monitor, observer), stop=observer.stop)


def ends(monitor: Monitor) -> dict[str, int]:
    return {state: count for state, count in monitor.ended.items() if count}


def test_page_agrees_with_mlflow(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cheap_outputs(monkeypatch)
    monitor = Phases()
    result = train(options(mlflow_uri, tmp_path), tiny_dataset, monitor)
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
    assert list(dict.fromkeys(monitor.entered)) == [
        Phase.STARTING, Phase.TRAINING, Phase.EVALUATION, Phase.OUTPUTS, Phase.SHIPPING, Phase.ENDED,
    ]  # fmt: skip
    key = found.tags["cnn_jobs.run_key"]
    assert monitor.log_context() == {"task": TASK.name, "run_key": key, "attempt": 1, "step": result.steps}


def test_resumed_attempt_counts_earlier_ones(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cheap_outputs(monkeypatch)
    own, first, second = options(mlflow_uri, tmp_path, run_key="k"), Monitor(TASK.name), Monitor(TASK.name)
    with pytest.raises(InterruptedRunError):
        train(own, tiny_dataset, first, stop_after=3)
    assert samples(page_of(first))["cnn_jobs_runs_ended_total", "interrupted"] == 1
    result = train(own, tiny_dataset, second)
    page = samples(page_of(second))
    assert page["cnn_jobs_attempts_total",] == 2
    assert page["cnn_jobs_steps_total", "useful"] == result.steps
    assert page["cnn_jobs_images_total",] == (result.steps - 3) * RECIPE.batch_size
    assert page["cnn_jobs_runs_ended_total", "finished"] == 1


def test_diverged_run_is_counted_as_diverged(mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset) -> None:
    monitor = Monitor(TASK.name)
    with pytest.raises(DivergedError):
        train(options(mlflow_uri, tmp_path), tiny_dataset, monitor, replace(RECIPE, lr=1e20))
    assert ends(monitor) == {"diverged": 1}
    assert only_run(mlflow_uri).data.tags["cnn_jobs.state"] == "diverged"


def test_run_of_another_attempt_is_counted_as_superseded(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset
) -> None:
    monitor, own = Monitor(TASK.name), options(mlflow_uri, tmp_path, run_key="k")
    lock = RunLock(own.state_dir / "k")
    try:
        with pytest.raises(CnnJobsError):
            train(own, tiny_dataset, monitor)
    finally:
        lock.release()
    assert ends(monitor) == {"superseded": 1}


# -- around a command --------------------------------------------------------------------------------------------------


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture(autouse=True)
def _quick_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "ANSWER_S", 0.1)


def fetch(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return samples(answer.read())


def test_page_is_served_while_the_command_works(port: int) -> None:
    lines: list[str] = []
    with monitored("task2", MonitoringOptions(metrics_port=port), StopRequest(), lines.append, lines.append) as monitor:
        assert fetch(port)["cnn_jobs_phase", "starting"] == 1
        monitor.attempt_opened(live_attempt())
        monitor.step_finished(70, 0.5)
        found = fetch(port)
        assert found["cnn_jobs_step",] == 70
        assert found["process_resident_memory_bytes",] > 1e7
    assert lines == []
    with socket.create_server(("127.0.0.1", port)):  # the port is free again
        pass


def test_port_in_use_is_a_warning(port: int) -> None:
    lines: list[str] = []
    options = MonitoringOptions(metrics_port=port, metrics_linger=60.0)
    with socket.create_server(("127.0.0.1", port)):
        began = time.monotonic()
        with monitored("task2", options, StopRequest(), lines.append, lines.append):
            pass
        assert time.monotonic() - began < 5  # nothing is served that could be scraped
    reason = "(Address already in use); the training continues; choose another --metrics-port"
    assert lines == [f"no metrics on 127.0.0.1:{port} {reason}"]


def test_last_values_wait_for_a_scrape_and_no_longer(port: int) -> None:
    seen = []

    def scrape() -> None:
        time.sleep(0.5)
        seen.append(fetch(port))

    began = time.monotonic()
    options = MonitoringOptions(metrics_port=port, metrics_linger=60.0)
    with monitored("task2", options, StopRequest(), str, str) as monitor:
        monitor.attempt_opened(live_attempt())
        fetch(port)  # a scrape before the end does not count
        threading.Thread(target=scrape).start()
        monitor.attempt_ended("finished")
    assert 0.5 <= time.monotonic() - began < 10
    assert seen[0]["cnn_jobs_runs_ended_total", "finished"] == 1


def test_signal_ends_the_wait_for_a_scrape(port: int) -> None:
    stop, options = StopRequest(), MonitoringOptions(metrics_port=port, metrics_linger=60.0)
    began = time.monotonic()
    with monitored("task2", options, stop, str, str):
        threading.Timer(0.2, lambda: stop.record(15)).start()
    assert time.monotonic() - began < 5


def test_error_is_printed_before_the_wait_and_keeps_its_exit_code(port: int) -> None:
    printed: list[tuple[str, float]] = []
    options, stop = MonitoringOptions(metrics_port=port, metrics_linger=3.0), StopRequest()

    def fail() -> None:
        with monitored("task2", options, stop, str, lambda error: printed.append((str(error), time.monotonic()))):
            threading.Timer(0.4, fetch, [port]).start()
            raise DataError("no such file")

    began = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        fail()
    assert caught.value.code == 2
    assert time.monotonic() - began > 0.4
    ((text, when),) = printed
    assert text == "no such file"
    assert when - began < 0.4


@pytest.mark.parametrize(("error", "state"), [(DataError("gone"), "failed"), (DivergedError("nan"), "diverged")])
def test_failure_before_the_first_run_is_counted(error: Exception, state: str) -> None:
    def fail() -> None:
        with monitored("task2", MonitoringOptions(), StopRequest(), str, str) as monitor:
            monitors.append(monitor)
            raise error

    monitors: list[Monitor] = []
    with pytest.raises(SystemExit):
        fail()
    assert ends(monitors[0]) == {state: 1}
