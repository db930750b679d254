"""Metrics pages of this program, and what is on them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.core import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from cnn_jobs.monitoring.metrics import Collector, push_outcome
from cnn_jobs.monitoring.monitor import Monitor
from cnn_jobs.runs.cost import AttemptCost, RunCost
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking.connection import UPLOAD_ERRORS
from cnn_jobs.training.loop import DeviceTime


@dataclass
class FixedAttempt:
    """A ``LiveAttempt`` whose delivery to MLflow is as a test wants it."""

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
    """Second attempt of a run: the first did 50 steps in 10 s, of which 40 in 8 s were saved; 30 in 8 s came since."""
    own = DeviceTime(steps=30, training_seconds=6.0, evaluation_seconds=2.0)
    before = [AttemptCost(1, 50, 10.0, 12.0)]
    cost = RunCost(2, time.monotonic(), Path("unused"), own, before, useful_steps=40, useful_device_seconds=8.0)
    return FixedAttempt(cost)


def show(monitor: Monitor, step: int) -> None:
    """One of every event that sets figures."""
    monitor.step_finished(step, 0.5)
    monitor.speed_measured(step, 480.0)
    monitor.validated(step, 1.25, 0.625)


def samples(page: bytes) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels, the task left out."""
    found = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            rest = [value for name, value in sorted(sample.labels.items()) if name != "task"]
            found[(sample.name, *rest)] = sample.value
    return found


def page_of(monitor: Monitor) -> bytes:
    """The page, as a scrape gets it."""
    registry = CollectorRegistry()
    registry.register(Collector(monitor))
    return generate_latest(registry)


def exported() -> dict[str, set[str]]:
    """The names of all series, on the page and at the Pushgateway, with their labels."""
    monitor = Monitor("task2")
    monitor.attempt_opened(live_attempt())
    show(monitor, 70)
    found: dict[str, set[str]] = {}
    for page in (page_of(monitor), pushed(0)):
        for family in text_string_to_metric_families(page.decode()):
            for sample in family.samples:
                found.setdefault(sample.name, {"task"}).update(sample.labels)
    return found


def pushed(exit_code: int, login: str = "", expected: str | None = None) -> bytes:
    """What a Pushgateway is sent, by a URL with this ``login``, under this header of authorisation."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers.get("Authorization") == expected
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Logs nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert push_outcome(
            f"http://{login}127.0.0.1:{server.server_port}", "task2", exit_code, 12.0, lambda text: None
        )
        thread.join()
    return bodies[0]


def metrics_table() -> str:
    """Every family of the page and of the Pushgateway, as docs/operations.md shows them."""
    monitor = Monitor("task2")
    monitor.attempt_opened(live_attempt())
    show(monitor, 70)
    lines = ["| metric | labels beside `task` | what it is |", "|---|---|---|"]
    for page in (page_of(monitor), pushed(0)):
        for family in text_string_to_metric_families(page.decode()):
            sample = family.samples[0]
            labels = ", ".join(f"`{name}`" for name in sorted(sample.labels) if name != "task")
            lines.append(f"| `{sample.name}` | {labels} | {family.documentation} |")
    return "\n".join(lines)
