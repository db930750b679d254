"""The metrics page: what the monitor knows, in Prometheus' words.

Names and units follow https://prometheus.io/docs/practices/naming/: base units, ``_total`` for what only rises, a time
of the epoch instead of an age. The only labels are the task, and words from fixed lists; which run and pod it is, the
scrape adds (``k8s/monitoring/podmonitor.yaml``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from cnn_jobs import __version__
from cnn_jobs.monitoring.device_memory import device_memory
from cnn_jobs.monitoring.monitor import Monitor, Totals
from cnn_jobs.watcher import Phase

# Metric in MLflow to its name here.
LATEST = {
    "train/loss": ("cnn_jobs_train_loss", "Training loss (cross entropy, nats) of the latest step that was read back."),
    "val/loss": ("cnn_jobs_validation_loss", "Validation loss (cross entropy, nats) of the latest validation."),
    "val/accuracy": ("cnn_jobs_validation_accuracy_ratio", "Fraction correct, 0 to 1, of the latest validation."),
    "train/images_per_second": (
        "cnn_jobs_train_images_per_second",
        "Speed between the latest two validations, as in MLflow; now: rate(cnn_jobs_images_total[5m]).",
    ),
}


class Collector:
    """Makes the page anew at every scrape; costs the training thread nothing else."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self.scrapes_after_end = 0

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: registering must not count as a scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All families."""
        yield from self._progress()
        totals = self._monitor.totals()
        yield from self._costs(totals)
        yield from self._delivery(totals)
        if self._monitor.phase_now is Phase.ENDED:
            self.scrapes_after_end += 1

    # -- families ------------------------------------------------------------------------------------------------

    def _progress(self) -> Iterable[Metric]:
        monitor, live = self._monitor, self._monitor.live
        phases = {phase.value: float(phase is monitor.phase_now) for phase in Phase}
        yield self._gauges("cnn_jobs_phase", "1 for the phase that the process is in.", "phase", phases)
        yield self._gauge("cnn_jobs_step", "Global optimiser step that was recorded last.", monitor.step)
        yield self._gauge("cnn_jobs_planned_steps", "Steps of the whole run at most.", monitor.steps_planned)
        epoch = monitor.step // live.steps_per_epoch if live else 0
        yield self._gauge("cnn_jobs_epoch", "Whole passes over the training images so far.", epoch)
        planned = live.run.recipe.epochs if live else 0
        yield self._gauge("cnn_jobs_planned_epochs", "Epochs of the whole run at most.", planned)
        yield self._gauge("cnn_jobs_start_timestamp_seconds", "When this process's work began.", monitor.began)
        text = "When the run last got further: a step, a validation, a new phase."
        yield self._gauge("cnn_jobs_last_progress_timestamp_seconds", text, monitor.progressed)
        if live:
            text = "When the last checkpoint was written; before the first of this attempt, when that began."
            saved = live.run.saved_at or live.began
            yield self._gauge("cnn_jobs_last_checkpoint_timestamp_seconds", text, saved)
        for key, (name, text) in LATEST.items():
            if key in monitor.latest:
                yield self._gauge(name, text, monitor.latest[key])
        device = live.run.placement.device.type if live else ""
        info = InfoMetricFamily("cnn_jobs_build", "Version of the program, and the kind of device.", labels=["task"])
        info.add_metric([monitor.task], {"version": __version__, "device": device})
        yield info

    def _costs(self, totals: Totals) -> Iterable[Metric]:
        live = self._monitor.live
        yield self._counter("cnn_jobs_images", "Images that this process has trained on.", totals.images)
        if live:
            text = "Processes of the present run so far, with this one."
            yield self._counter("cnn_jobs_attempts", text, live.recorder.attempt)
        steps = {"useful": totals.useful_steps, "wasted": totals.wasted_steps}
        text = "Optimiser steps of all attempts, by whether they are in the present state or were lost with a kill."
        yield self._counters("cnn_jobs_steps", text, "usefulness", steps)
        seconds = {"useful": totals.useful_device_s, "wasted": totals.wasted_device_s}
        text = "Seconds of the device in training, evaluation and trunk, of all attempts; wasted: lost with a kill."
        yield self._counters("cnn_jobs_device_seconds", text, "usefulness", seconds)
        text = "Runs of this process that ended, by how."
        yield self._counters("cnn_jobs_runs_ended", text, "state", self._monitor.ended)
        if live and (memory := device_memory(live.run.placement.device)):
            text = "Memory of the training device (on a CPU, of this process): used now, the most so far, the limit."
            yield self._gauges("cnn_jobs_device_memory_bytes", text, "kind", memory)

    def _delivery(self, totals: Totals) -> Iterable[Metric]:
        if live := self._monitor.live:
            backlog = live.recorder.backlog()
            text = "Records of the journal that MLflow has not acknowledged."
            yield self._gauge("cnn_jobs_journal_backlog_records", text, backlog.records)
            text = "For how long MLflow has not had everything; 0 when it has."
            yield self._gauge("cnn_jobs_journal_backlog_seconds", text, backlog.seconds)
        text = "Calls to MLflow that failed, by kind."
        yield self._counters("cnn_jobs_ship_errors", text, "kind", totals.ship_errors)

    # -- one family ----------------------------------------------------------------------------------------------

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        return self._filled(GaugeMetricFamily(name, text, labels=["task"]), {(): value})

    def _gauges(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        return self._filled(GaugeMetricFamily(name, text, labels=["task", label]), _by_word(values))

    def _counter(self, name: str, text: str, value: float) -> Metric:
        return self._filled(CounterMetricFamily(name, text, labels=["task"]), {(): value})

    def _counters(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        return self._filled(CounterMetricFamily(name, text, labels=["task", label]), _by_word(values))

    def _filled(
        self, family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[tuple[str, ...], float]
    ) -> Metric:
        for words, value in values.items():
            family.add_metric([self._monitor.task, *words], value)
        return family


def _by_word(values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(word,): value for word, value in values.items()}
