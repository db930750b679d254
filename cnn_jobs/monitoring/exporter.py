"""The metrics page of this process, for Prometheus to fetch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cnn_jobs.monitoring.collector import Collector
from cnn_jobs.monitoring.monitor import Monitor

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

# After a scrape the answer has to leave this machine, too.
ANSWER_S = 0.5


class Exporter:
    """Serves ``/metrics`` from a thread of its own. A port that cannot be had is a warning: the training goes on."""

    def __init__(self, monitor: Monitor, port: int, host: str, warn: Callable[[str], object]) -> None:
        from prometheus_client import (
            CollectorRegistry,
            GCCollector,
            PlatformCollector,
            ProcessCollector,
            start_http_server,
        )

        self.port = 0
        self._collector = Collector(monitor)
        self._server: WSGIServer | None = None
        registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        registry.register(self._collector)
        try:
            self._server, _ = start_http_server(port, addr=host, registry=registry)
            self.port = self._server.server_port
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", "") or str(error)
            warn(f"no metrics on {host}:{port} ({reason}); the training goes on, choose another --metrics-port")

    def linger(self, seconds: float, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Stays until the last values were fetched, at most so long, and not after ``hurry``; whether they were."""
        if not self._server:
            return False
        before, end = self._collector.scrapes_after_end, time.monotonic() + seconds
        while self._collector.scrapes_after_end == before:
            if time.monotonic() >= end or hurry():
                return False
            time.sleep(0.05)
        time.sleep(ANSWER_S)
        return True

    def close(self) -> None:
        """Frees the port."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
