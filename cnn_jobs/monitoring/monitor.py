"""The current state of this process: written by the training thread, read by the metrics page and the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cnn_jobs.errors import CnnJobsError
from cnn_jobs.monitoring import logs
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tracking import names, run_status
from cnn_jobs.tracking.connection import UPLOAD_ERRORS
from cnn_jobs.training.observer import LiveAttempt, Observer, Phase


@dataclass(frozen=True, kw_only=True)
class MonitoringOptions:
    """How a process can be monitored: ``metrics_port`` (0: none), ``metrics_linger`` in seconds, ``pushgateway`` ("":
    none)."""

    metrics_port: int = 0
    metrics_host: str = "127.0.0.1"
    metrics_linger: float = 0.0
    pushgateway: str = ""


@dataclass
class Totals:
    """Totals over the runs of this process; device time and steps of a run over all its attempts."""

    images: int = 0
    useful_steps: float = 0.0
    wasted_steps: float = 0.0
    useful_device_s: float = 0.0
    wasted_device_s: float = 0.0
    upload_errors: dict[str, int] = field(default_factory=lambda: dict.fromkeys(UPLOAD_ERRORS, 0))

    def plus(self, live: LiveAttempt) -> Totals:
        """These totals and the present figures of an attempt."""
        costs, errors = live.costs(), live.upload_errors()
        wasted, wasted_s = costs[names.WASTED_STEPS], costs[names.WASTED_DEVICE_SECONDS]
        return Totals(
            self.images + live.steps_done * live.batch_size,
            self.useful_steps + costs[names.STEPS] - wasted,
            self.wasted_steps + wasted,
            self.useful_device_s + costs[names.DEVICE_SECONDS] - wasted_s,
            self.wasted_device_s + wasted_s,
            {kind: count + errors[kind] for kind, count in self.upload_errors.items()},
        )


class Monitor(Observer):
    """An observer that keeps the latest figures. Attributes are replaced as a whole, so that readers need no lock."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.began_at = self.progressed_at = time.time()
        self.phase = Phase.STARTING
        self.live: LiveAttempt | None = None
        self.step = self.steps_planned = 0
        self.latest: dict[str, float] = {}  # by metric name
        self.ended = dict.fromkeys(run_status.STATES, 0)
        self._before = Totals()

    # -- as an observer ----------------------------------------------------------------------------------------------

    def attempt_opened(self, live: LiveAttempt) -> None:
        """Makes this the current attempt; adds the previous one to the totals."""
        if self.live:
            self._before = self._before.plus(self.live)
        self.live, self.step, self.latest = live, live.first_step, {}
        self.steps_planned = live.steps_per_epoch * live.epochs
        self._enter(Phase.STARTING)

    def training_started(self, name: str, steps: int) -> None:
        """Enters the training phase."""
        self.steps_planned = steps
        self._enter(Phase.TRAINING)

    def step_finished(self, step: int, loss: float) -> None:
        """Keeps the loss."""
        self._measured(step, {names.TRAIN_LOSS: loss})

    def speed_measured(self, step: int, images_per_second: float) -> None:
        """Keeps the speed."""
        self._measured(step, {names.TRAIN_SPEED: images_per_second})

    def validated(self, step: int, loss: float, accuracy: float) -> None:
        """Keeps the figures."""
        self._measured(step, {names.VAL_LOSS: loss, names.VAL_ACCURACY: accuracy})

    def phase_changed(self, phase: Phase, text: str) -> None:
        """Enters the phase; a repetition is progress, too."""
        self._enter(phase)

    def attempt_ended(self, state: str) -> None:
        """Counts the end by its state."""
        self.ended = {**self.ended, state: self.ended.get(state, 0) + 1}
        self._enter(Phase.ENDED)

    def _measured(self, step: int, values: dict[str, float]) -> None:
        self.latest.update(values)
        self.step, self.progressed_at = step, time.time()
        if self.phase is Phase.FEATURES:
            self._enter(Phase.TRAINING)

    def _enter(self, phase: Phase) -> None:
        self.phase, self.progressed_at = phase, time.time()

    # -- for readers -------------------------------------------------------------------------------------------------

    def totals(self) -> Totals:
        """Totals of all runs of this process, including the current one."""
        return self._before.plus(self.live) if self.live else self._before

    def log_context(self) -> dict[str, object]:
        """Fields of every log line: the run and its step."""
        facts: dict[str, object] = {"task": self.task}
        if self.live:
            facts |= {"run_key": self.live.run_key, "attempt": self.live.number, "step": self.step}
        return facts


@contextmanager
def monitored(
    task: str,
    options: MonitoringOptions,
    stop: StopRequest,
    warn: Callable[[str], object],
    print_error: Callable[[CnnJobsError], object],
) -> Iterator[Monitor]:
    """Provides the metrics page and log context within, and pushes the outcome at the end; keeps the exit code.

    An error is printed at once and becomes a ``SystemExit``: it must not wait until the page is closed.
    """
    monitor, began = Monitor(task), time.monotonic()
    logs.add_context("run", monitor.log_context)
    exporter = None
    if options.metrics_port:
        from cnn_jobs.monitoring.metrics import Exporter

        exporter = Exporter(monitor, options.metrics_port, options.metrics_host, warn)
    code = 1
    try:
        yield monitor
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    except BaseException as error:
        if not any(monitor.ended.values()):  # before there was a run, as for missing data
            monitor.attempt_ended(run_status.state_after(error))
        if isinstance(error, CnnJobsError):
            code = error.exit_code
            print_error(error)
            raise SystemExit(code) from error
        raise
    finally:
        with stop.masked():
            if options.pushgateway:
                from cnn_jobs.monitoring.metrics import push_outcome

                seconds, abort = time.monotonic() - began, bool(stop.signal_name)
                push_outcome(options.pushgateway, task, code, seconds, warn, abort=abort)
            if exporter:
                if options.metrics_linger:
                    exporter.linger(options.metrics_linger, stop.requested)
                exporter.close()
