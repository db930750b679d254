"""Cancels the runs of a Kubernetes Job in MLflow: marked before the Job stops, with a true status after it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from cnn_jobs.tracking import names
from cnn_jobs.tracking.client import RemoteRun, TrackingClient
from cnn_jobs.tracking.connection import call_within, run_url
from cnn_jobs.tracking.records import now_ms
from cnn_jobs.tracking.run_status import CANCELLED, FINISHED


@dataclass(frozen=True)
class Settled:
    """A run after the end of its pods, as MLflow has it."""

    key: str
    name: str
    status: str
    state: str
    has_checkpoint: bool
    url: str


class JobRuns:
    """The runs whose key is from one Job. Calls raise ``TrackingError`` where MLflow does not answer in time."""

    def __init__(self, uri: str, job_uid: str, timeout_s: float = 30.0) -> None:
        """Does not connect yet. ``timeout_s``: how long to wait for an answer."""
        self._client, self._uid, self._timeout_s = TrackingClient(uri), job_uid, timeout_s
        self._marked: set[str] = set()

    def runs(self) -> list[RemoteRun]:
        """By key; of duplicates the one that counts."""
        self._client.load()
        first: dict[str, RemoteRun] = {}
        for run in call_within(self._timeout_s, lambda: self._client.of_job(self._uid)):
            first.setdefault(run.tags[names.RUN_KEY], run)
        return list(first.values())

    def mark_cancelled(self, reason: str) -> list[RemoteRun]:
        """Marks runs that are running or would be resumed: attempts keep the mark, and no other attempt starts."""
        open_runs = [run for run in self.runs() if _is_open(run)]
        for run in open_runs:
            self._mark(run, reason)
        return open_runs

    def settle(self, reason: str) -> list[Settled]:
        """After the end of the pods: sets runs to KILLED whose process was killed before it could do so."""
        for run in self.runs():
            if run.status == "FINISHED":
                if run.cancelled:  # it finished just as it was cancelled
                    self._set(run, {names.STATE: FINISHED, names.REASON: ""})
                continue
            if not run.cancelled and _is_open(run):  # of an attempt that began just as it was cancelled
                self._mark(run, reason)
            if run.status != "KILLED" and (run.cancelled or run.run_id in self._marked):
                call_within(self._timeout_s, partial(self._client.set_status, run.run_id, "KILLED", now_ms()))
        return [self._settled(run) for run in self.runs()]

    def _mark(self, run: RemoteRun, reason: str) -> None:
        self._set(run, {names.STATE: CANCELLED, names.REASON: reason})
        self._marked.add(run.run_id)

    def _set(self, run: RemoteRun, tags: dict[str, str]) -> None:
        call_within(self._timeout_s, lambda: self._client.set_tags(run.run_id, tags))

    def _settled(self, run: RemoteRun) -> Settled:
        there = call_within(self._timeout_s, lambda: self._client.artifacts(run.run_id, names.CHECKPOINTS))
        url = run_url(self._client.uri, run.experiment_id, run.run_id)
        has_checkpoint = any(slot in there for slot in names.CHECKPOINT_SLOTS)
        return Settled(run.tags[names.RUN_KEY], run.name, run.status, run.state, has_checkpoint, url)


def _is_open(run: RemoteRun) -> bool:
    """Whether an attempt owns it, or the next one would continue it. FAILED and FINISHED runs have ended."""
    return run.status in ("RUNNING", "SCHEDULED") or (run.status == "KILLED" and not run.cancelled)
