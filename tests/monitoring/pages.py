"""Metrics pages of this program, and what is on them."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, cast

import torch
from prometheus_client import generate_latest
from prometheus_client.core import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from cnn_jobs.monitoring.metrics import LATEST, Collector, push_outcome
from cnn_jobs.monitoring.monitor import Monitor
from cnn_jobs.runs.cost import AttemptCost, RunCost
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking.connection import SHIP_ERRORS
from cnn_jobs.tracking.recorder import Backlog
from cnn_jobs.training.loop import DeviceTime
from cnn_jobs.training.observer import LiveAttempt


class StandingRecorder:
    """A recorder whose delivery stands as a test wants it."""

    attempt = 2

    def __init__(self) -> None:
        self.ship_errors = dict.fromkeys(SHIP_ERRORS, 0)
        self.records, self.seconds = 0, 0.0

    def backlog(self) -> Backlog:
        return Backlog(self.records, self.seconds)


class StandingRun:
    """What the page reads of a run."""

    def __init__(self) -> None:
        self.task, self.key, self.saved_at = TASKS["task2"], "k1", 0.0
        self.recipe = self.task.recipe
        self.ledger = DeviceTime(steps=30, training_seconds=6.0, evaluation_seconds=2.0)
        self.placement: Any = type("Placement", (), {"device": torch.device("cpu")})


def live_attempt(tmp_path: Any = None) -> LiveAttempt:
    """Second attempt of a run: the first did 50 steps in 10 s, of which 40 in 8 s were saved; 30 in 8 s came since."""
    run = StandingRun()
    before = [AttemptCost(1, 50, 10.0, 12.0)]
    book = RunCost(2, time.monotonic(), tmp_path, run.ledger, before, useful_steps=40, useful_device_seconds=8.0)
    return LiveAttempt(cast(Any, run), 1000.0, 20, 40, cast(Any, StandingRecorder()), book)


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
    monitor.opened(live_attempt())
    monitor.metrics({"train/loss": 1.0, "val/loss": 1.0, "val/accuracy": 0.5, "train/images_per_second": 9.0}, step=70)
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
            """Says nothing."""

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
    monitor.opened(live_attempt())
    monitor.metrics(dict.fromkeys(LATEST, 1.0), step=70)
    lines = ["| metric | labels beside `task` | what it is |", "|---|---|---|"]
    for page in (page_of(monitor), pushed(0)):
        for family in text_string_to_metric_families(page.decode()):
            sample = family.samples[0]
            labels = ", ".join(f"`{name}`" for name in sorted(sample.labels) if name != "task")
            lines.append(f"| `{sample.name}` | {labels} | {family.documentation} |")
    return "\n".join(lines)
