"""The page over HTTP, the last values after the end, and the Pushgateway."""

from __future__ import annotations

import base64
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from cnn_jobs.errors import DataError, DivergedError
from cnn_jobs.local_server.server import free_port
from cnn_jobs.monitoring.metrics import Exporter, push_outcome
from cnn_jobs.monitoring.monitor import Monitor, MonitoringOptions, monitored
from cnn_jobs.system.signals import StopRequest
from tests.monitoring.pages import live_attempt, pushed, samples


@pytest.fixture
def port() -> int:
    return free_port()


def fetch(port: int) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return samples(answer.read())


def test_the_page_is_there_while_the_command_works_and_then_its_port_is_free(port: int) -> None:
    lines: list[str] = []
    with monitored("task2", MonitoringOptions(metrics_port=port), StopRequest(), lines.append, lines.append) as monitor:
        assert fetch(port)["cnn_jobs_phase", "starting"] == 1
        monitor.attempt_opened(live_attempt())
        monitor.step_finished(70, 0.5)
        found = fetch(port)
        assert found["cnn_jobs_step",] == 70
        assert found["process_resident_memory_bytes",] > 1e7
    assert lines == []
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_port_in_use_is_one_warning(port: int) -> None:
    lines: list[str] = []
    options = MonitoringOptions(metrics_port=port, metrics_linger=60.0)
    with socket.create_server(("127.0.0.1", port)):
        began = time.monotonic()
        with monitored("task2", options, StopRequest(), lines.append, lines.append):
            pass
        assert time.monotonic() - began < 5  # nobody can fetch what is not served
    assert lines == [
        f"no metrics on 127.0.0.1:{port} (Address already in use); the training continues; "
        "choose another --metrics-port"
    ]


def test_the_last_values_wait_for_a_scrape_and_no_longer(port: int) -> None:
    options = MonitoringOptions(metrics_port=port, metrics_linger=60.0)
    seen = []

    def scrape() -> None:
        time.sleep(1.0)
        seen.append(fetch(port))

    began = time.monotonic()
    with monitored("task2", options, StopRequest(), str, str) as monitor:
        monitor.attempt_opened(live_attempt())
        fetch(port)  # one before the end does not count
        threading.Thread(target=scrape).start()
        monitor.attempt_ended("finished")
    assert 1.0 <= time.monotonic() - began < 10
    assert seen[0]["cnn_jobs_runs_ended_total", "finished"] == 1


def test_without_a_scrape_it_waits_its_whole_time(port: int) -> None:
    monitor = Monitor("task2")
    exporter = Exporter(monitor, port, "127.0.0.1", str)
    began = time.monotonic()
    assert not exporter.linger(0.5)
    assert 0.5 <= time.monotonic() - began < 3
    exporter.close()


def test_a_signal_ends_the_wait(port: int) -> None:
    stop, options = StopRequest(), MonitoringOptions(metrics_port=port, metrics_linger=60.0)
    began = time.monotonic()
    with monitored("task2", options, stop, str, str):
        threading.Timer(0.5, lambda: stop.record(15)).start()
    assert time.monotonic() - began < 5


def _after_a_scrape(port: int) -> DataError:
    threading.Timer(0.6, fetch, [port]).start()
    return DataError("no such file")


@contextmanager
def keeping(context: AbstractContextManager[Monitor], kept: list[Monitor]) -> Iterator[None]:
    """Keeps what the context gives."""
    with context as made:
        kept.append(made)
        yield


def test_an_error_is_printed_before_the_wait_and_keeps_its_exit_code(port: int) -> None:
    lines: list[tuple[str, float]] = []
    options = MonitoringOptions(metrics_port=port, metrics_linger=3.0)
    began = time.monotonic()
    seen = monitored("task2", options, StopRequest(), str, lambda error: lines.append((str(error), time.monotonic())))
    with pytest.raises(SystemExit) as caught, seen:
        raise _after_a_scrape(port)
    assert caught.value.code == 2
    ((text, when),) = lines
    assert text == "no such file"
    assert when - began < 2


@pytest.mark.parametrize(("error", "state"), [(DataError("gone"), "failed"), (DivergedError("nan"), "diverged")])
def test_a_failure_before_there_is_a_run_counts_as_one(port: int, error: Exception, state: str) -> None:
    kept: list[Monitor] = []
    with pytest.raises(SystemExit), keeping(monitored("task2", MonitoringOptions(), StopRequest(), str, str), kept):
        raise error
    assert {name: count for name, count in kept[0].ended.items() if count} == {state: 1}


def test_the_outcome_goes_to_the_pushgateway_and_a_failure_leaves_the_last_success() -> None:
    found = samples(pushed(0))
    assert found["cnn_jobs_last_exit_code",] == 0
    assert found["cnn_jobs_last_duration_seconds",] == 12
    assert abs(found["cnn_jobs_last_success_timestamp_seconds",] - time.time()) < 60
    failed = samples(pushed(2))
    assert failed["cnn_jobs_last_exit_code",] == 2
    assert ("cnn_jobs_last_success_timestamp_seconds",) not in failed


def test_a_login_in_the_url_is_sent_as_a_header() -> None:
    header = "Basic " + base64.b64encode(b"ann:p@ss").decode()
    assert samples(pushed(0, "ann:p%40ss@", header))["cnn_jobs_last_exit_code",] == 0


def test_an_unreachable_pushgateway_is_one_warning(port: int) -> None:
    lines: list[str] = []
    began = time.monotonic()
    assert not push_outcome(f"http://u:hunter2@127.0.0.1:{port}", "task2", 0, 1.0, lines.append)
    assert time.monotonic() - began < 3
    (line,) = lines
    assert "could not be pushed to the Pushgateway http://u:***@127.0.0.1" in line
    assert "Connection refused" in line


def test_a_pushgateway_that_never_answers_delays_nothing() -> None:
    lines: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        assert not push_outcome(f"127.0.0.1:{silent.getsockname()[1]}", "task2", 0, 1.0, lines.append, abort=True)
        assert time.monotonic() - began < 2
    assert "did not answer in time" in lines[0]
