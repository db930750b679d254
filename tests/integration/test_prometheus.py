"""A training with a real Prometheus and a real Pushgateway."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from cnn_jobs.local_server.server import free_port
from tests.helpers.dashboard import FOLDER, panels
from tests.helpers.waiting import until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not (shutil.which("prometheus") and shutil.which("prometheus-pushgateway")),
        reason="prometheus and prometheus-pushgateway are not installed",
    ),
]

INTERVAL_S = 1


@contextmanager
def running(command: list[object], ready: str, log: Path) -> Iterator[None]:
    with log.open("w") as stream:
        process = subprocess.Popen(list(map(str, command)), stdout=stream, stderr=stream)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(ready, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        until(answers)
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


class Prometheus:
    """A Prometheus server."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def query(self, path: str, **parameters: str) -> Any:
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)["data"]

    def series(self, expression: str) -> list[tuple[dict[str, str], float]]:
        return [(each["metric"], float(each["value"][1])) for each in self.query("query", query=expression)["result"]]

    def value(self, expression: str) -> float | None:
        """The value of the only series, ``None`` where there is none."""
        found = self.series(expression)
        assert len(found) <= 1
        return found[0][1] if found else None


@pytest.fixture
def pushgateway(tmp_path: Path) -> Iterator[int]:
    port = free_port()
    command: list[object] = ["prometheus-pushgateway", f"--web.listen-address=127.0.0.1:{port}"]
    with running(command, f"http://127.0.0.1:{port}/-/ready", tmp_path / "pushgateway.log"):
        yield port


@pytest.fixture
def metrics_port() -> int:
    return free_port()


@pytest.fixture
def prometheus(tmp_path: Path, metrics_port: int, pushgateway: int) -> Iterator[Prometheus]:
    """Scrapes a training on ``metrics_port``, with the labels of a pod, and the Pushgateway; evaluates the alerts."""
    shutil.copy(FOLDER / "alerts.yaml", tmp_path)
    pod = {"namespace": "n", "pod": "task2-abc", "run": "task2"}
    settings = {
        "global": {"scrape_interval": f"{INTERVAL_S}s", "evaluation_interval": f"{INTERVAL_S}s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [
            {"job_name": "pods", "static_configs": [{"targets": [f"127.0.0.1:{metrics_port}"], "labels": pod}]},
            {
                "job_name": "pushgateway",
                "honor_labels": True,
                "static_configs": [{"targets": [f"127.0.0.1:{pushgateway}"]}],
            },
        ],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(settings))
    port = free_port()
    command: list[object] = [
        "prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/tsdb",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with running(command, f"http://127.0.0.1:{port}/-/ready", tmp_path / "prometheus.log"):
        yield Prometheus(port)


@pytest.fixture
def train(
    tmp_path: Path, metrics_port: int, pushgateway: int, small_file: Path
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts small trainings; kills those that still run at the end."""
    own = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "CNN_JOBS_STATE_DIR": str(tmp_path / "state"),
        "CNN_JOBS_METRICS_PORT": str(metrics_port),
        "CNN_JOBS_PUSHGATEWAY": f"http://127.0.0.1:{pushgateway}",
    }
    started = []

    def start(*more: object, hook: str = "cheap_outputs()") -> subprocess.Popen[str]:
        code = (
            f"import sys; from tests.helpers import hooks; from cnn_jobs.cli import main; hooks.{hook}; "
            "sys.argv[0] = 'cnn-jobs'; main()"
        )
        options = ["--data", small_file, "--batch-size", 9, "--early-stop-count", 0, "--threads", 1]
        command = [sys.executable, "-c", code, "train", "task2", *options, *more]
        process = subprocess.Popen(
            list(map(str, command)),
            env={**os.environ, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_series_of_a_training_and_its_outcome(
    prometheus: Prometheus, train: Callable[..., subprocess.Popen[str]]
) -> None:
    """400 steps of 50 ms: about twenty scrapes, and one that ends the linger."""
    began = time.time()
    process = train("--epochs", 100, "--metrics-linger", 30, hook="slow_steps(0.05)")
    until(lambda: prometheus.value('cnn_jobs_phase{phase="training"} == 1'))
    until(lambda: (prometheus.value("cnn_jobs_step") or 0) > 60)

    # During the training.
    assert prometheus.value("cnn_jobs_planned_steps") == 400
    assert prometheus.value("cnn_jobs_epoch") == pytest.approx((prometheus.value("cnn_jobs_step") or 0) // 4, abs=10)
    speed = until(lambda: prometheus.value("rate(cnn_jobs_images_total[10s])"))
    assert 20 < speed < 200  # nine images in a little over 50 ms
    assert prometheus.value("time() - cnn_jobs_last_progress_timestamp_seconds < 10") is not None
    assert prometheus.value("cnn_jobs_journal_backlog_seconds") is not None
    assert began - 60 < (prometheus.value("cnn_jobs_last_checkpoint_timestamp_seconds") or 0) <= time.time()
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"].replace("$task", ".*").replace("$run", ".*").replace("$__rate_interval", "10s")
            found = prometheus.series(expression)
            if "cnn_jobs_last" not in expression or "progress" in expression:
                assert found, (panel["title"], expression)

    assert process.wait(timeout=120) == 0, process.stdout
    output = process.stdout.read() if process.stdout else ""
    assert "warning" not in output

    # The last values were scraped before the process ended.
    ended = 'max_over_time(cnn_jobs_runs_ended_total{state="finished"}[5m])'
    assert until(lambda: prometheus.value(ended)) == 1
    assert prometheus.value("max_over_time(cnn_jobs_step[5m])") == 400
    assert prometheus.value("max_over_time(cnn_jobs_images_total[5m])") == 400 * 9
    labels = {name for metric, _ in prometheus.series("last_over_time(cnn_jobs_step[5m])") for name in metric}
    assert labels == {"__name__", "task", "run", "pod", "namespace", "job", "instance"}

    # The outcome stays, by task and without labels of the process.
    (metric, code), *others = until(lambda: prometheus.series("cnn_jobs_last_exit_code"))
    assert (code, others) == (0, [])
    assert metric == {"__name__": "cnn_jobs_last_exit_code", "job": "cnn-jobs", "task": "task2"}
    assert prometheus.value("cnn_jobs_last_success_timestamp_seconds >= " + str(began)) is not None
    duration = prometheus.value("cnn_jobs_last_duration_seconds") or 0
    assert 20 < duration < time.time() - began


def test_diverged_run_fires_two_alerts(prometheus: Prometheus, train: Callable[..., subprocess.Popen[str]]) -> None:
    process = train("--epochs", 100, "--metrics-linger", 30, "--lr", "1e12")
    assert process.wait(timeout=120) == 2

    def firing() -> set[str]:
        return {
            alert["labels"]["alertname"] for alert in prometheus.query("alerts")["alerts"] if alert["state"] == "firing"
        }

    until(lambda: "CnnJobsTaskFailing" in firing())
    seen = 'max_over_time(ALERTS{alertname="CnnJobsRunFailed", alertstate="firing", state="diverged"}[5m])'
    assert until(lambda: prometheus.value(seen)) == 1


def test_missing_pushgateway_and_port_in_use_are_warnings(
    train: Callable[..., subprocess.Popen[str]], metrics_port: int
) -> None:
    with socket.create_server(("127.0.0.1", metrics_port)):
        process = train("--epochs", 2, "--pushgateway", f"http://127.0.0.1:{free_port()}")
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    port_in_use, pushed = [line for line in output.splitlines() if "warning" in line]
    assert port_in_use.startswith(
        f"warning: no metrics on 127.0.0.1:{metrics_port} (Address already in use); the training"
    )
    assert pushed.startswith("warning: the outcome could not be pushed to the Pushgateway")
    assert "Connection refused" in output
