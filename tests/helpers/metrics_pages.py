"""Metrics pages, and their samples."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.core import CollectorRegistry, Metric
from prometheus_client.parser import text_string_to_metric_families

from cnn_jobs.monitoring.metrics import Collector, push_outcome
from cnn_jobs.monitoring.monitor import Monitor
from cnn_jobs.runs.cost import AttemptCost, RunCost
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking.connection import UPLOAD_ERRORS
from cnn_jobs.training.loop import DeviceTime

Samples = dict[tuple[str, ...], float]


@dataclass
class FixedAttempt:
    """A ``LiveAttempt`` with known values."""

    cost: RunCost
    run_key: str = "k1"
    device_type: str = "cpu"
    batch_size: int = TASKS["task2"].recipe.batch_size
    epochs: int = TASKS["task2"].recipe.epochs
    steps_per_epoch: int = 20
    first_step: int = 40
    number: int = 2
    checkpointed_at: float = 1000.0
    records: int = 0
    seconds: float = 0.0
    errors: dict[str, int] = field(default_factory=lambda: dict.fromkeys(UPLOAD_ERRORS, 0))

    @property
    def steps_done(self) -> int:
        return self.cost.own.steps

    def costs(self) -> Mapping[str, float]:
        return self.cost.totals()

    def backlog(self) -> tuple[int, float]:
        return self.records, self.seconds

    def upload_errors(self) -> Mapping[str, int]:
        return self.errors


def live_attempt() -> FixedAttempt:
    """The second attempt of a run: the first one did 50 steps in 10 s, of which 40 in 8 s were saved; this one has done
    30 in 8 s."""
    own = DeviceTime(steps=30, training_seconds=6.0, evaluation_seconds=2.0)
    before = [AttemptCost(1, 50, 10.0, 12.0)]
    cost = RunCost(2, time.monotonic(), Path("unused"), own, before, useful_steps=40, useful_device_seconds=8.0)
    return FixedAttempt(cost)


def observe_step(monitor: Monitor, step: int) -> None:
    """Every event that has figures."""
    monitor.step_finished(step, 0.5)
    monitor.speed_measured(step, 480.0)
    monitor.validated(step, 1.25, 0.625)


def samples(page: bytes) -> Samples:
    """Every sample, by its name and the values of its labels without the task."""
    found = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            labels = [value for name, value in sorted(sample.labels.items()) if name != "task"]
            found[(sample.name, *labels)] = sample.value
    return found


def page_of(monitor: Monitor) -> bytes:
    """The page that a scrape gets."""
    registry = CollectorRegistry()
    registry.register(Collector(monitor))
    return generate_latest(registry)


def pushed_page(exit_code: int, login: str = "", authorization: str | None = None) -> bytes:
    """What a Pushgateway receives, at a URL with this ``login`` and with this header."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers.get("Authorization") == authorization
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Logs nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://{login}127.0.0.1:{server.server_port}"
        assert push_outcome(url, "task2", exit_code, 12.0, lambda text: None)
        thread.join()
    return bodies[0]


def all_families() -> Iterator[Metric]:
    """Every family of the page and of the Pushgateway."""
    monitor = Monitor("task2")
    monitor.attempt_opened(live_attempt())
    observe_step(monitor, 70)
    for page in (page_of(monitor), pushed_page(0)):
        yield from text_string_to_metric_families(page.decode())
