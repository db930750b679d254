"""The metrics page: known values of a fixed attempt, and Prometheus' naming rules."""

from __future__ import annotations

import mmap
import shutil
import subprocess
import time

import pytest

from cnn_jobs.cli.train import train
from cnn_jobs.monitoring.metrics import device_memory
from cnn_jobs.monitoring.monitor import Monitor
from cnn_jobs.tasks import TASKS
from cnn_jobs.training.observer import Phase
from tests.monitoring.pages import FixedAttempt, live_attempt, page_of, samples, show


@pytest.fixture
def live() -> FixedAttempt:
    return live_attempt()


@pytest.fixture
def monitor(live: FixedAttempt) -> Monitor:
    made = Monitor("task2")
    made.attempt_opened(live)
    made.training_started("task2-seed0", 200)
    made.step_finished(69, 0.75)
    show(made, 70)
    return made


def test_the_page_shows_the_progress(monitor: Monitor) -> None:
    found = samples(page_of(monitor))
    assert found["cnn_jobs_step",] == 70
    assert found["cnn_jobs_planned_steps",] == 200
    assert found["cnn_jobs_epoch",] == 3  # of 20 steps each
    assert found["cnn_jobs_planned_epochs",] == TASKS["task2"].recipe.epochs
    assert found["cnn_jobs_train_loss",] == 0.5
    assert found["cnn_jobs_validation_loss",] == 1.25
    assert found["cnn_jobs_validation_accuracy_ratio",] == 0.625
    assert found["cnn_jobs_train_images_per_second",] == 480
    assert {name: value for name, value in found.items() if name[0] == "cnn_jobs_phase"} == {
        ("cnn_jobs_phase", phase.value): float(phase is Phase.TRAINING) for phase in Phase
    }


def test_the_page_shows_the_costs(monitor: Monitor) -> None:
    found = samples(page_of(monitor))
    assert found["cnn_jobs_attempts_total",] == 2
    assert found["cnn_jobs_images_total",] == 30 * TASKS["task2"].recipe.batch_size
    # 50 and 30 steps, of which the first attempt's last 10 were lost; 10 s and 8 s, of which 2 s.
    assert (found["cnn_jobs_steps_total", "useful"], found["cnn_jobs_steps_total", "wasted"]) == (70, 10)
    assert found["cnn_jobs_device_seconds_total", "useful"] == pytest.approx(16)
    assert found["cnn_jobs_device_seconds_total", "wasted"] == pytest.approx(2)


def test_the_page_shows_what_mlflow_lacks(monitor: Monitor, live: FixedAttempt) -> None:
    live.records, live.seconds = 12, 7.5
    live.errors["no_answer"] = 3
    found = samples(page_of(monitor))
    assert found["cnn_jobs_journal_backlog_records",] == 12
    assert found["cnn_jobs_journal_backlog_seconds",] == 7.5
    assert (found["cnn_jobs_ship_errors_total", "no_answer"], found["cnn_jobs_ship_errors_total", "refused"]) == (3, 0)


def test_the_page_shows_the_time_of_the_last_checkpoint(monitor: Monitor, live: FixedAttempt) -> None:
    assert samples(page_of(monitor))["cnn_jobs_last_checkpoint_timestamp_seconds",] == 1000.0
    live.checkpointed_at = 1500.0
    assert samples(page_of(monitor))["cnn_jobs_last_checkpoint_timestamp_seconds",] == 1500.0


def test_the_next_run_of_a_series_starts_at_its_own_step_and_adds_its_costs(monitor: Monitor) -> None:
    monitor.attempt_ended("finished")
    second = live_attempt()
    second.errors["foreign"] = 1
    monitor.attempt_opened(second)
    found = samples(page_of(monitor))
    assert found["cnn_jobs_step",] == 40  # from which it resumes
    assert ("cnn_jobs_train_loss",) not in found
    assert found["cnn_jobs_steps_total", "useful"] == 140
    assert found["cnn_jobs_device_seconds_total", "wasted"] == pytest.approx(4)
    assert found["cnn_jobs_ship_errors_total", "foreign"] == 1
    assert (found["cnn_jobs_runs_ended_total", "finished"], found["cnn_jobs_runs_ended_total", "failed"]) == (1, 0)
    assert found["cnn_jobs_phase", "starting"] == 1


def test_progress_is_a_step_or_a_new_phase_and_nothing_else(monitor: Monitor) -> None:
    def progressed() -> float:
        return samples(page_of(monitor))["cnn_jobs_last_progress_timestamp_seconds",]

    before = progressed()
    monitor.warn("MLflow does not answer")
    assert progressed() == before
    time.sleep(0.01)
    monitor.step_finished(71, 1.0)
    after_step = progressed()
    assert before < after_step <= time.time()
    time.sleep(0.01)
    monitor.phase_changed(Phase.OUTPUTS, "plots, tables and model")
    assert after_step < progressed() <= time.time()


def test_before_there_is_a_run_there_is_a_page() -> None:
    found = samples(page_of(Monitor("task2")))
    assert found["cnn_jobs_phase", "starting"] == 1
    assert found["cnn_jobs_step",] == 0


def test_memory_of_a_cpu_run_is_that_of_the_process() -> None:
    found = device_memory("cpu")
    assert 10e6 < found["used"] <= found["peak"] <= found["limit"]
    size = 64 << 20
    with mmap.mmap(-1, size) as ballast:  # fresh from the system, whatever an allocator has left
        ballast.write(b"1" * size)
        grown = device_memory("cpu")["used"] - found["used"]
    assert 0.8 * size < grown


@pytest.mark.integration
@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_accepts_names_and_help(monitor: Monitor) -> None:
    checked = subprocess.run(["promtool", "check", "metrics"], input=page_of(monitor), capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_train_serves_metrics_in_a_pod_and_not_on_a_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    with train.make_context("train", ["task2"]) as context:
        assert (context.params["metrics_port"], context.params["metrics_host"]) == (0, "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with train.make_context("train", ["task2"]) as context:
        assert (context.params["metrics_port"], context.params["metrics_host"]) == (9090, "0.0.0.0")
