"""What this process does now, as far as it is known: kept by the training thread, read by others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from cnn_jobs.errors import CnnJobsError
from cnn_jobs.monitoring import logs
from cnn_jobs.system.signals import StopRequest
from cnn_jobs.tracking import names, run_status
from cnn_jobs.tracking.connection import SHIP_ERRORS
from cnn_jobs.training.observer import LiveAttempt, Phase


@dataclass
class Totals:
    """What the runs of this process came to; a run's device time and steps over all its attempts."""

    images: int = 0
    useful_steps: float = 0.0
    wasted_steps: float = 0.0
    useful_device_s: float = 0.0
    wasted_device_s: float = 0.0
    ship_errors: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SHIP_ERRORS, 0))

    def plus(self, live: LiveAttempt) -> Totals:
        """These and an attempt's, as it is now."""
        ledger, errors = live.book.totals(), live.recorder.ship_errors
        wasted, wasted_s = ledger[names.WASTED_STEPS], ledger[names.WASTED_DEVICE_SECONDS]
        return Totals(
            self.images + live.run.ledger.steps * live.run.recipe.batch_size,
            self.useful_steps + ledger[names.STEPS] - wasted,
            self.wasted_steps + wasted,
            self.useful_device_s + ledger[names.DEVICE_SECONDS] - wasted_s,
            self.wasted_device_s + wasted_s,
            {kind: count + errors[kind] for kind, count in self.ship_errors.items()},
        )


class Monitor:
    """A watcher that remembers. Every attribute is replaced as a whole, so that a reader needs no lock."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.began = self.progressed = time.time()
        self.phase_now = Phase.STARTING
        self.live: LiveAttempt | None = None
        self.step = self.steps_planned = 0
        self.latest: dict[str, float] = {}
        self.ended = dict.fromkeys(run_status.STATES, 0)
        self._before = Totals()

    # -- what the run says ---------------------------------------------------------------------------------------

    def opened(self, live: LiveAttempt) -> None:
        """From now on its figures count, beside those of the runs before it."""
        if self.live:
            self._before = self._before.plus(self.live)
        self.live, self.step, self.latest = live, live.first_step, {}
        self.steps_planned = live.steps_per_epoch * live.run.recipe.epochs
        self._now(Phase.STARTING)

    def begin(self, name: str, steps: int) -> None:
        """The phase, and how far it can go."""
        self.steps_planned = steps
        self._now(Phase.TRAINING)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """The newest of each."""
        self.latest.update(values)
        self.step, self.progressed = step, time.time()
        if self.phase_now is Phase.FEATURES:
            self._now(Phase.TRAINING)

    def phase(self, phase: Phase, text: str) -> None:
        """The phase; being told is a sign of progress."""
        self._now(phase)

    def warn(self, text: str) -> None:
        """No figure."""

    def end(self, state: str) -> None:
        """One more that ended so."""
        self.ended = {**self.ended, state: self.ended.get(state, 0) + 1}
        self._now(Phase.ENDED)

    def _now(self, phase: Phase) -> None:
        self.phase_now, self.progressed = phase, time.time()

    # -- what others ask -----------------------------------------------------------------------------------------

    def totals(self) -> Totals:
        """Of all runs of this process, the present one as it is now."""
        return self._before.plus(self.live) if self.live else self._before

    def where(self) -> dict[str, object]:
        """For every line of the log: whose it is, and how far that was."""
        facts: dict[str, object] = {"task": self.task}
        if self.live:
            facts |= {"run_key": self.live.run.key, "attempt": self.live.recorder.attempt, "step": self.step}
        return facts


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
    logs.add_context("run", monitor.where)
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
        if not any(monitor.ended.values()):  # before there was a run, as for data that are missing
            monitor.end(run_status.state_of(error))
        if isinstance(error, CnnJobsError):
            code = error.exit_code
            tell(error)
            raise SystemExit(code) from error
        raise
    finally:
        with stop.deferred():
            if options.pushgateway:
                from cnn_jobs.monitoring.metrics import push_outcome

                seconds, hurry = time.monotonic() - began, bool(stop.signal_name)
                push_outcome(options.pushgateway, task, code, seconds, warn, hurry=hurry)
            if exporter:
                if options.metrics_linger:
                    exporter.linger(options.metrics_linger, stop.requested)
                exporter.close()
