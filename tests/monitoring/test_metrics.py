"""The metrics page: its values, its server, and the outcome for the Pushgateway."""

from __future__ import annotations

import base64
import mmap
import shutil
import socket
import subprocess
import time

import pytest

from cnn_jobs.cli.train import train
from cnn_jobs.local_server.server import free_port
from cnn_jobs.monitoring.metrics import Exporter, device_memory, push_outcome
from cnn_jobs.monitoring.monitor import Monitor
from cnn_jobs.tasks import TASKS
from cnn_jobs.training.observer import Phase
from tests.helpers.metrics_pages import FixedAttempt, live_attempt, observe_step, page_of, pushed_page, samples


@pytest.fixture
def live() -> FixedAttempt:
    return live_attempt()


@pytest.fixture
def monitor(live: FixedAttempt) -> Monitor:
    monitor = Monitor("task2")
    monitor.attempt_opened(live)
    monitor.training_started("task2-seed0", 200)
    monitor.step_finished(69, 0.75)
    observe_step(monitor, 70)
    return monitor


# -- the page ----------------------------------------------------------------------------------------------------------


def test_progress(monitor: Monitor) -> None:
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


def test_costs(monitor: Monitor) -> None:
    found = samples(page_of(monitor))
    assert found["cnn_jobs_attempts_total",] == 2
    assert found["cnn_jobs_images_total",] == 30 * TASKS["task2"].recipe.batch_size
    # 50 and 30 steps, of which the first attempt's last 10 were lost; 10 s and 8 s, of which 2 s.
    assert (found["cnn_jobs_steps_total", "useful"], found["cnn_jobs_steps_total", "wasted"]) == (70, 10)
    assert found["cnn_jobs_device_seconds_total", "useful"] == pytest.approx(16)
    assert found["cnn_jobs_device_seconds_total", "wasted"] == pytest.approx(2)


def test_backlog_and_last_checkpoint(monitor: Monitor, live: FixedAttempt) -> None:
    assert samples(page_of(monitor))["cnn_jobs_last_checkpoint_timestamp_seconds",] == 1000.0
    live.records, live.seconds, live.checkpointed_at = 12, 7.5, 1500.0
    live.errors["no_answer"] = 3
    found = samples(page_of(monitor))
    assert found["cnn_jobs_journal_backlog_records",] == 12
    assert found["cnn_jobs_journal_backlog_seconds",] == 7.5
    assert (found["cnn_jobs_ship_errors_total", "no_answer"], found["cnn_jobs_ship_errors_total", "refused"]) == (3, 0)
    assert found["cnn_jobs_last_checkpoint_timestamp_seconds",] == 1500.0


def test_next_run_of_a_series_adds_its_costs(monitor: Monitor) -> None:
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


def test_only_steps_and_phases_are_progress(monitor: Monitor) -> None:
    def last_progress() -> float:
        return samples(page_of(monitor))["cnn_jobs_last_progress_timestamp_seconds",]

    before = last_progress()
    monitor.warn("MLflow does not answer")
    assert last_progress() == before
    time.sleep(0.01)
    monitor.step_finished(71, 1.0)
    after_step = last_progress()
    assert before < after_step <= time.time()
    time.sleep(0.01)
    monitor.phase_changed(Phase.OUTPUTS, "plots, tables and model")
    assert after_step < last_progress() <= time.time()


def test_page_before_the_first_run() -> None:
    found = samples(page_of(Monitor("task2")))
    assert found["cnn_jobs_phase", "starting"] == 1
    assert found["cnn_jobs_step",] == 0


def test_memory_of_a_cpu_run_is_that_of_the_process() -> None:
    found = device_memory("cpu")
    assert 10e6 < found["used"] <= found["peak"] <= found["limit"]
    size = 64 << 20
    with mmap.mmap(-1, size) as ballast:  # new from the system, whatever an allocator has kept
        ballast.write(b"1" * size)
        grown = device_memory("cpu")["used"] - found["used"]
    assert 0.8 * size < grown


@pytest.mark.integration
@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_accepts_names_and_help(monitor: Monitor) -> None:
    checked = subprocess.run(["promtool", "check", "metrics"], input=page_of(monitor), capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


# -- its server --------------------------------------------------------------------------------------------------------


def test_linger_without_a_scrape_takes_its_whole_time() -> None:
    exporter = Exporter(Monitor("task2"), free_port(), "127.0.0.1", str)
    began = time.monotonic()
    assert not exporter.linger(0.3)
    assert 0.3 <= time.monotonic() - began < 3
    exporter.close()


def test_train_serves_metrics_only_in_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    with train.make_context("train", ["task2"]) as context:
        assert (context.params["metrics_port"], context.params["metrics_host"]) == (0, "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with train.make_context("train", ["task2"]) as context:
        assert (context.params["metrics_port"], context.params["metrics_host"]) == (9090, "0.0.0.0")


# -- Pushgateway -------------------------------------------------------------------------------------------------------


def test_failed_command_keeps_the_time_of_the_last_success() -> None:
    found = samples(pushed_page(0))
    assert found["cnn_jobs_last_exit_code",] == 0
    assert found["cnn_jobs_last_duration_seconds",] == 12
    assert abs(found["cnn_jobs_last_success_timestamp_seconds",] - time.time()) < 60
    failed = samples(pushed_page(2))
    assert failed["cnn_jobs_last_exit_code",] == 2
    assert ("cnn_jobs_last_success_timestamp_seconds",) not in failed


def test_login_in_the_url_becomes_a_header() -> None:
    header = "Basic " + base64.b64encode(b"ann:p@ss").decode()
    assert samples(pushed_page(0, "ann:p%40ss@", header))["cnn_jobs_last_exit_code",] == 0


def test_unreachable_pushgateway_is_a_warning() -> None:
    lines: list[str] = []
    began = time.monotonic()
    assert not push_outcome(f"http://u:hunter2@127.0.0.1:{free_port()}", "task2", 0, 1.0, lines.append)
    assert time.monotonic() - began < 3
    (line,) = lines
    assert "could not be pushed to the Pushgateway http://u:***@127.0.0.1" in line
    assert "Connection refused" in line


def test_silent_pushgateway_delays_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnn_jobs.monitoring.metrics.TIMEOUT_AFTER_SIGNAL_S", 0.2)
    lines: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        assert not push_outcome(f"127.0.0.1:{silent.getsockname()[1]}", "task2", 0, 1.0, lines.append, abort=True)
        assert time.monotonic() - began < 1
    assert "did not answer in time" in lines[0]
