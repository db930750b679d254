"""A command that trains, seen from outside from its first moment to its last."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cnn_jobs import endings
from cnn_jobs.errors import CnnJobsError
from cnn_jobs.monitoring import logs
from cnn_jobs.monitoring.monitor import Monitor
from cnn_jobs.stop import StopRequest


@dataclass(frozen=True, kw_only=True)
class MonitoringOptions:
    """Where a process is seen: ``metrics_port`` 0 for nowhere, ``metrics_linger`` in seconds, ``pushgateway`` ""."""

    metrics_port: int = 0
    metrics_host: str = "127.0.0.1"
    metrics_linger: float = 0.0
    pushgateway: str = ""


@contextmanager
def watched(
    task: str,
    options: MonitoringOptions,
    stop: StopRequest,
    warn: Callable[[str], object],
    tell: Callable[[CnnJobsError], object],
) -> Iterator[Monitor]:
    """Metrics, log lines and outcome of what is done within, whose exit code stays as it is.

    An error is told by ``tell`` at once and becomes a ``SystemExit``: nobody waits for it until the page was fetched.
    """
    monitor, began = Monitor(task), time.monotonic()
    logs.tell_context("run", monitor.where)
    exporter = None
    if options.metrics_port:
        from cnn_jobs.monitoring.exporter import Exporter

        exporter = Exporter(monitor, options.metrics_port, options.metrics_host, warn)
    code = 1
    try:
        yield monitor
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    except BaseException as error:
        if not any(monitor.ended.values()):  # before there was a run, as for data that are missing
            monitor.end(endings.state_of(error))
        if isinstance(error, CnnJobsError):
            code = error.exit_code
            tell(error)
            raise SystemExit(code) from error
        raise
    finally:
        with stop.deferred():
            if options.pushgateway:
                from cnn_jobs.monitoring.outcome import push_outcome

                seconds, hurry = time.monotonic() - began, bool(stop.signal_name)
                push_outcome(options.pushgateway, task, code, seconds, warn, hurry=hurry)
            if exporter:
                if options.metrics_linger:
                    exporter.linger(options.metrics_linger, stop.requested)
                exporter.close()
