"""Runs of a Kubernetes Job that somebody cancels: told to them before it stops, and true in MLflow after that."""

from __future__ import annotations

from dataclasses import dataclass

from cnn_jobs.tracking import names
from cnn_jobs.tracking.client import RemoteRun, TrackingClient
from cnn_jobs.tracking.connection import run_url
from cnn_jobs.tracking.look_up import within
from cnn_jobs.tracking.records import CANCELLED, now_ms


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
    """The runs whose key one Job gave. Calls raise ``TrackingError`` where MLflow does not answer in time."""

    def __init__(self, uri: str, job_uid: str, budget_s: float = 30.0) -> None:
        """Connects to nothing yet. ``budget_s``: how long an answer is waited for."""
        self._remote, self._uid, self._budget_s = TrackingClient(uri), job_uid, budget_s
        self._told: set[str] = set()

    def runs(self) -> list[RemoteRun]:
        """By key; of twins the one that counts."""
        self._remote.load()
        first: dict[str, RemoteRun] = {}
        for run in within(self._budget_s, lambda: self._remote.of_job(self._uid)):
            first.setdefault(run.tags[names.RUN_KEY], run)
        return list(first.values())

    def tell(self, reason: str) -> list[RemoteRun]:
        """Marks what is under way, or would go on, as cancelled: an attempt keeps that word, and none follows it."""
        open_runs = [run for run in self.runs() if _is_open(run)]
        for run in open_runs:
            self._tell(run, reason)
        return open_runs

    def settle(self, reason: str) -> list[Settled]:
        """Of a Job whose pods are gone: what could not say its end itself, killed before it could, is KILLED."""
        for run in self.runs():
            if run.status == "FINISHED":
                if run.cancelled:  # it was finished in the moment in which it was cancelled
                    self._set(run, {names.STATE: "finished", names.REASON: ""})
                continue
            if not run.cancelled and _is_open(run):  # of an attempt that began in the moment of the cancelling
                self._tell(run, reason)
                self._told.add(run.run_id)
            if run.status != "KILLED" and (run.cancelled or run.run_id in self._told):
                within(self._budget_s, lambda run=run: self._remote.set_status(run.run_id, "KILLED", now_ms()))  # type: ignore[misc]
        return [self._settled(run) for run in self.runs()]

    def _tell(self, run: RemoteRun, reason: str) -> None:
        self._set(run, {names.STATE: CANCELLED, names.REASON: reason})
        self._told.add(run.run_id)

    def _set(self, run: RemoteRun, tags: dict[str, str]) -> None:
        within(self._budget_s, lambda: self._remote.set_tags(run.run_id, tags))

    def _settled(self, run: RemoteRun) -> Settled:
        there = within(self._budget_s, lambda: self._remote.artifacts(run.run_id, "checkpoints"))
        url = run_url(self._remote.uri, run.experiment_id, run.run_id)
        has_checkpoint = any(slot in there for slot in names.CHECKPOINT_SLOTS)
        return Settled(run.tags[names.RUN_KEY], run.name, run.status, run.state, has_checkpoint, url)


def _is_open(run: RemoteRun) -> bool:
    """Whether an attempt has it, or the next one would go on with it. FAILED and FINISHED say how it ended already."""
    return run.status in ("RUNNING", "SCHEDULED") or (run.status == "KILLED" and not run.cancelled)
