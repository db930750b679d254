"""Runs that MLflow shows as RUNNING although their process is gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cnn_jobs.errors import UserError
from cnn_jobs.tracking import names
from cnn_jobs.tracking.client import RemoteRun, TrackingClient
from cnn_jobs.tracking.ownership import STILL_S
from cnn_jobs.tracking.records import now_ms


@dataclass(frozen=True)
class Watched:
    """A run that was RUNNING at the first look, and the result of the second."""

    run: RemoteRun
    lost: bool
    status: str


def reap(
    uri: str,
    experiment: str,
    *,
    missing_ok: bool = False,
    still_s: float = STILL_S,
    wait: Callable[[float], object] = time.sleep,
    report: Callable[[str], object] = lambda text: None,
) -> list[Watched]:
    """Sets runs to FAILED, ``lost``, whose heartbeat counter is the same in two readings ``still_s`` seconds apart.

    No clocks are compared. A run that was only out of reach sets itself to RUNNING again with its next heartbeat.
    Raises ``UserError`` for an unknown experiment unless ``missing_ok``, ``TrackingError`` where MLflow does not
    answer.
    """
    client = TrackingClient(uri)
    if not client.has_experiment(experiment):
        if missing_ok:
            return []
        raise UserError(f"experiment '{experiment}' is not in MLflow; choose another with --experiment")
    first = {run.run_id: run for run in _running(client, experiment)}
    if not first:
        return []
    report(f"{len(first)} {'run is' if len(first) == 1 else 'runs are'} RUNNING; looking again in {still_s:.0f} s")
    wait(still_s)
    second = {run.run_id: run for run in _running(client, experiment)}
    watched = []
    for run_id, before in first.items():
        now = second.get(run_id)
        still = now is not None and (now.attempt_id, now.heartbeat) == (before.attempt_id, before.heartbeat)
        again = None
        if still:
            # Immediately before setting it: the run may have ended while others were handled.
            again = client.get(run_id)
            still = again is not None and again.status == "RUNNING" and again.heartbeat == before.heartbeat
        status = _set_ended(client, again or before, still_s) if still else "RUNNING" if now else "ended meanwhile"
        watched.append(Watched(before, status == "FAILED", status))
    return watched


def _set_ended(client: TrackingClient, run: RemoteRun, still_s: float) -> str:
    """FAILED and lost, but KILLED where the run was cancelled and its process killed. Returns the status."""
    if run.cancelled:
        client.set_status(run.run_id, "KILLED", now_ms())
        return "KILLED"
    reason = f"no heartbeat from attempt {run.attempt} for {still_s:.0f} s: its process is gone, or out of reach"
    # The tags first: a heartbeat that arrives now sees RUNNING and leaves them; the next sees FAILED and sets both.
    client.set_tags(run.run_id, {names.STATE: "lost", names.REASON: reason})
    client.set_status(run.run_id, "FAILED", now_ms())
    return "FAILED"


def _running(client: TrackingClient, experiment: str) -> list[RemoteRun]:
    return [run for run in client.running(experiment) if names.RUN_KEY in run.tags]
