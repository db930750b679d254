"""Runs that MLflow shows as RUNNING though their process is gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cnn_jobs.errors import UserError
from cnn_jobs.tracking import names
from cnn_jobs.tracking.client import RemoteRun, TrackingClient
from cnn_jobs.tracking.ownership import RUN_KEY_TAG, STILL_S
from cnn_jobs.tracking.records import now_ms


@dataclass(frozen=True)
class Watched:
    """A run that was RUNNING at the first look, and what the second look made of it."""

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
    say: Callable[[str], object] = lambda text: None,
) -> list[Watched]:
    """Sets runs to FAILED, ``lost``, whose heartbeat counter reads the same twice, ``still_s`` seconds apart.

    Clocks are not asked. One that was only out of reach sets itself to RUNNING again with its next heartbeat. Raises
    ``UserError`` for an unknown experiment unless it is ``missing_ok``, ``TrackingError`` where MLflow does not answer.
    """
    remote = TrackingClient(uri)
    if not remote.has_experiment(experiment):
        if missing_ok:
            return []
        raise UserError(f"experiment '{experiment}' is not in MLflow; name one with --experiment")
    first = {run.run_id: run for run in _running(remote, experiment)}
    if not first:
        return []
    say(f"{len(first)} runs are RUNNING; looking again in {still_s:.0f} s")
    wait(still_s)
    second = {run.run_id: run for run in _running(remote, experiment)}
    watched = []
    for run_id, before in first.items():
        now = second.get(run_id)
        still = now is not None and (now.attempt_id, now.heartbeat) == (before.attempt_id, before.heartbeat)
        again = None
        if still:
            # Once more, right before: it may have ended by itself while others were looked at.
            again = remote.get(run_id)
            still = again is not None and again.status == "RUNNING" and again.heartbeat == before.heartbeat
        status = _set_ended(remote, again or before, still_s) if still else "RUNNING" if now else "ended meanwhile"
        watched.append(Watched(before, status == "FAILED", status))
    return watched


def _set_ended(remote: TrackingClient, run: RemoteRun, still_s: float) -> str:
    """FAILED, lost; but KILLED where it was cancelled and killed before it could say so. Returns that status."""
    if run.cancelled:
        remote.set_status(run.run_id, "KILLED", now_ms())
        return "KILLED"
    reason = f"no sign of life from attempt {run.attempt} for {still_s:.0f} s: its process is gone, or out of reach"
    # The tags first: a heartbeat that comes now sees RUNNING and leaves them; the next one sees FAILED and sets both.
    remote.set_tags(run.run_id, {names.STATE: "lost", names.REASON: reason})
    remote.set_status(run.run_id, "FAILED", now_ms())
    return "FAILED"


def _running(remote: TrackingClient, experiment: str) -> list[RemoteRun]:
    return [run for run in remote.running(experiment) if RUN_KEY_TAG in run.tags]
