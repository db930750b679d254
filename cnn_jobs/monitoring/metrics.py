"""The metrics page for Prometheus, and the outcome of a command for a Pushgateway.

Names and units follow https://prometheus.io/docs/practices/naming/: base units, ``_total`` for what only rises, a time
since 1970 instead of an age. The only labels are the task and values from fixed lists; the scrape adds run and pod
(``k8s/monitoring/podmonitor.yaml``). A Pushgateway never forgets a series, so only the outcome by task goes there
(https://prometheus.io/docs/practices/pushing/).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from cnn_jobs import __version__
from cnn_jobs.monitoring.monitor import Monitor, Totals
from cnn_jobs.system.redaction import redact
from cnn_jobs.tracking import names
from cnn_jobs.training.observer import Phase

if TYPE_CHECKING:  # the page must be served before torch is imported
    from wsgiref.simple_server import WSGIServer


def device_memory(device_type: str) -> dict[str, float]:
    """Bytes: ``used`` now, ``peak`` so far, ``limit``; for a CPU those of this process and its control group."""
    if device_type == "cuda":
        import torch

        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        used, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        return {"used": float(used), "peak": float(peak), "limit": float(total)}
    import psutil

    from cnn_jobs.training.device import memory_limit

    used = psutil.Process().memory_info().rss
    return {"used": float(used), "peak": float(max(used, peak_memory())), "limit": float(memory_limit())}


def peak_memory() -> int:
    """The process' peak memory so far, in bytes; 0 where the system does not report it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
    except OSError:
        return 0


# Metric in MLflow to its name and text here.
LATEST = {
    names.TRAIN_LOSS: (
        "cnn_jobs_train_loss",
        "Training loss (cross entropy, nats) of the latest step that was read back.",
    ),
    names.VAL_LOSS: ("cnn_jobs_validation_loss", "Validation loss (cross entropy, nats) of the latest validation."),
    names.VAL_ACCURACY: ("cnn_jobs_validation_accuracy_ratio", "Fraction correct, 0 to 1, of the latest validation."),
    names.TRAIN_SPEED: (
        "cnn_jobs_train_images_per_second",
        "Speed between the latest two validations, as in MLflow; now: rate(cnn_jobs_images_total[5m]).",
    ),
}


class Collector:
    """Builds the page at every scrape; costs the training thread nothing."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self.scrapes_after_end = 0

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering does not count as a scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All families."""
        yield from self._progress()
        totals = self._monitor.totals()
        yield from self._costs(totals)
        yield from self._delivery(totals)
        if self._monitor.phase is Phase.ENDED:
            self.scrapes_after_end += 1

    # -- families ------------------------------------------------------------------------------------------------

    def _progress(self) -> Iterable[Metric]:
        monitor, live = self._monitor, self._monitor.live
        phases = {phase.value: float(phase is monitor.phase) for phase in Phase}
        yield self._gauges("cnn_jobs_phase", "1 for the phase that the process is in.", "phase", phases)
        yield self._gauge("cnn_jobs_step", "Global optimiser step that was recorded last.", monitor.step)
        yield self._gauge("cnn_jobs_planned_steps", "Maximum number of steps of the whole run.", monitor.steps_planned)
        epoch = monitor.step // live.steps_per_epoch if live else 0
        yield self._gauge("cnn_jobs_epoch", "Completed passes over the training images.", epoch)
        planned = live.epochs if live else 0
        yield self._gauge("cnn_jobs_planned_epochs", "Maximum number of epochs of the whole run.", planned)
        yield self._gauge("cnn_jobs_start_timestamp_seconds", "When this process started its work.", monitor.began_at)
        text = "When the run last made progress: a step, a validation, a new phase."
        yield self._gauge("cnn_jobs_last_progress_timestamp_seconds", text, monitor.progressed_at)
        if live:
            text = "When the last checkpoint was written; before the first one, when this attempt began."
            yield self._gauge("cnn_jobs_last_checkpoint_timestamp_seconds", text, live.checkpointed_at)
        for key, (name, text) in LATEST.items():
            if key in monitor.latest:
                yield self._gauge(name, text, monitor.latest[key])
        device = live.device_type if live else ""
        info = InfoMetricFamily("cnn_jobs_build", "Version of the program, and the kind of device.", labels=["task"])
        info.add_metric([monitor.task], {"version": __version__, "device": device})
        yield info

    def _costs(self, totals: Totals) -> Iterable[Metric]:
        live = self._monitor.live
        yield self._counter("cnn_jobs_images", "Images that this process has trained on.", totals.images)
        if live:
            text = "Attempts of the present run so far, this one included."
            yield self._counter("cnn_jobs_attempts", text, live.number)
        steps = {"useful": totals.useful_steps, "wasted": totals.wasted_steps}
        text = "Optimiser steps over all attempts; wasted: lost with a kill."
        yield self._counters("cnn_jobs_steps", text, "usefulness", steps)
        seconds = {"useful": totals.useful_device_s, "wasted": totals.wasted_device_s}
        text = (
            "Device seconds in training, evaluation and frozen backbone, over all attempts; wasted: lost with a kill."
        )
        yield self._counters("cnn_jobs_device_seconds", text, "usefulness", seconds)
        text = "Runs of this process that ended, by their state."
        yield self._counters("cnn_jobs_runs_ended", text, "state", self._monitor.ended)
        if live and (memory := device_memory(live.device_type)):
            text = "Memory of the training device (on a CPU, of this process): used, peak and limit."
            yield self._gauges("cnn_jobs_device_memory_bytes", text, "kind", memory)

    def _delivery(self, totals: Totals) -> Iterable[Metric]:
        if live := self._monitor.live:
            records, seconds = live.backlog()
            text = "Records of the journal that MLflow has not acknowledged."
            yield self._gauge("cnn_jobs_journal_backlog_records", text, records)
            text = "How long records have waited for MLflow; 0 when none waits."
            yield self._gauge("cnn_jobs_journal_backlog_seconds", text, seconds)
        text = "Calls to MLflow that failed, by kind."
        yield self._counters("cnn_jobs_ship_errors", text, "kind", totals.upload_errors)

    # -- one family ----------------------------------------------------------------------------------------------

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        return self._filled(GaugeMetricFamily(name, text, labels=["task"]), {(): value})

    def _gauges(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        return self._filled(GaugeMetricFamily(name, text, labels=["task", label]), _by_label(values))

    def _counter(self, name: str, text: str, value: float) -> Metric:
        return self._filled(CounterMetricFamily(name, text, labels=["task"]), {(): value})

    def _counters(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        return self._filled(CounterMetricFamily(name, text, labels=["task", label]), _by_label(values))

    def _filled(
        self, family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[tuple[str, ...], float]
    ) -> Metric:
        for labels, value in values.items():
            family.add_metric([self._monitor.task, *labels], value)
        return family


def _by_label(values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(label,): value for label, value in values.items()}


# After a scrape the response still has to be sent.
ANSWER_S = 0.5


class Exporter:
    """Serves ``/metrics`` from a thread. A port that cannot be opened is a warning: the training continues."""

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
            warn(f"no metrics on {host}:{port} ({reason}); the training continues; choose another --metrics-port")

    def linger(self, seconds: float, abort: Callable[[], bool] = lambda: False) -> bool:
        """Waits until the last values were scraped, at most ``seconds`` and not after ``abort``; returns whether they
        were."""
        if not self._server:
            return False
        before, end = self._collector.scrapes_after_end, time.monotonic() + seconds
        while self._collector.scrapes_after_end == before:
            if time.monotonic() >= end or abort():
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


JOB = "cnn-jobs"
# Short: it is not worth waiting for a Pushgateway that does not answer at once.
TIMEOUT_S, TIMEOUT_AFTER_SIGNAL_S = 3.0, 1.0


def push_outcome(
    url: str, task: str, exit_code: int, seconds: float, warn: Callable[[str], object], *, abort: bool = False
) -> bool:
    """Pushes exit code, duration and time of the command to the Pushgateway at ``url``; returns whether that succeeded.

    An unreachable one costs at most ``TIMEOUT_S`` seconds and a warning.
    """
    trouble = ["it did not answer in time"]
    thread = threading.Thread(
        target=_push, args=(url, task, exit_code, seconds, trouble), name="pushgateway", daemon=True
    )
    thread.start()
    thread.join(TIMEOUT_AFTER_SIGNAL_S if abort else TIMEOUT_S)
    found = list(trouble)
    if found:
        warn(redact(f"the outcome could not be pushed to the Pushgateway {url}: {found[-1]}; check --pushgateway"))
    return not found


def _with_login(url: str) -> tuple[str, Callable[..., Callable[[], None]]]:
    """The address without user and password, and a handler that sends them by HTTP basic authentication."""
    from prometheus_client.exposition import basic_auth_handler, default_handler

    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.username is None:
        return url, default_handler
    address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return address, partial(
        basic_auth_handler, username=unquote(parts.username), password=unquote(parts.password or "")
    )


def _push(url: str, task: str, exit_code: int, seconds: float, trouble: list[str]) -> None:
    from prometheus_client import CollectorRegistry, Gauge, pushadd_to_gateway

    registry, now = CollectorRegistry(), time.time()

    def gauge(name: str, text: str, value: float) -> None:
        Gauge(name, text, registry=registry).set(value)

    gauge(
        "cnn_jobs_last_completion_timestamp_seconds", "When the task's last command ended, whatever its exit code.", now
    )
    gauge("cnn_jobs_last_exit_code", "Exit code of the task's last command.", exit_code)
    gauge("cnn_jobs_last_duration_seconds", "How long the task's last command took.", seconds)
    if exit_code == 0:
        # After a failure the time of an earlier success is kept: the push adds to the group, it does not replace it.
        gauge("cnn_jobs_last_success_timestamp_seconds", "When the task's last successful command ended.", now)
    try:
        address, handler = _with_login(url)
        key = {"task": task}
        pushadd_to_gateway(address, job=JOB, registry=registry, grouping_key=key, timeout=TIMEOUT_S, handler=handler)
    except Exception as error:  # URLs, name servers and proxies cause errors of many types
        trouble.append(str(error) or type(error).__name__)
    else:
        trouble.clear()
