"""One MLflow run for a run key, owned by one attempt at a time: found or created, taken over, checked."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from cnn_jobs.errors import AnotherAttemptError, CancelledRunError
from cnn_jobs.tracking import names
from cnn_jobs.tracking.client import RemoteRun, TrackingClient
from cnn_jobs.tracking.connection import OutageError, call_within
from cnn_jobs.tracking.records import AttemptMark, RunHeader

HEARTBEAT_INTERVAL_S = 10.0
# A live attempt increments its counter at least once in this time; it pauses at most 30 s between tries.
STILL_S = 60.0
POLL_S = 2.0


class DuplicateRunError(OutageError):
    """The attached run was deleted, or duplicates an older one: find the key's run again."""


# -- finding the run -------------------------------------------------------------------------------------------------


def runs_of_key(client: TrackingClient, header: RunHeader) -> list[RemoteRun]:
    """The runs with the key, oldest first; several for a moment when two processes create it at the same time."""
    return client.find(header.experiment, names.RUN_KEY, header.run_key)


def find_run(client: TrackingClient, header: RunHeader, timeout_s: float) -> RemoteRun | None:
    """The key's run, the oldest of duplicates; ``None`` where MLflow has none. Raises as ``call_within``."""
    client.load()
    runs = call_within(timeout_s, lambda: runs_of_key(client, header))
    return runs[0] if runs else None


def find_or_create(client: TrackingClient, header: RunHeader, mark: AttemptMark) -> RemoteRun:
    """The key's run, the oldest of duplicates; empty duplicates are deleted.

    Raises ``OutageError``, and ``RunMismatchError`` before anything is written if the key's run is another one.
    """
    runs = runs_of_key(client, header)
    if not runs:
        client.create(header, {**attempt_tags(mark), **parent_tag(client, header)})
        # Another process may have created one at the same time: all use the oldest that MLflow lists.
        runs = runs_of_key(client, header)
    if not runs:
        raise OutageError(f"run {header.run_key} was created, but MLflow does not list it yet")
    header.check_same(runs[0].tags, f"run {runs[0].run_id} in MLflow")
    for duplicate in runs[1:]:
        # Deleting this attempt's own loses nothing: the journal has all of it.
        if duplicate.attempt_id == mark.id or (not duplicate.metrics and not duplicate.params):
            client.delete(duplicate.run_id)
    return runs[0]


def parent_tag(client: TrackingClient, header: RunHeader) -> dict[str, str]:
    """MLflow's tag for the run's parent; empty if the parent does not exist, or not yet."""
    if not header.parent_key:
        return {}
    parents = client.find(header.experiment, names.RUN_KEY, header.parent_key)
    return {names.PARENT_RUN_ID: parents[0].run_id} if parents else {}


# -- ownership -------------------------------------------------------------------------------------------------------


def attempt_tags(mark: AttemptMark) -> dict[str, str]:
    """The tags of the attempt that owns a run."""
    return {
        names.ATTEMPT: str(mark.number),
        names.ATTEMPT_ID: mark.id,
        names.STATE: "running",
        names.HEARTBEAT: "0",
    }


def check_cancelled(key: str, run: RemoteRun, mark: AttemptMark) -> None:
    """Raises ``CancelledRunError`` (exit 2, so that a Job starts no further pod) where the run was cancelled before
    this attempt owned it."""
    if run.cancelled and run.status != "FINISHED" and run.attempt_id != mark.id and not mark.revives:
        raise CancelledRunError(f"run {key} was cancelled; use another --run-key, or continue it with --resume must")


def may_take_over(run: RemoteRun, mark: AttemptMark) -> bool:
    """Whether the attempt that owns the run is known to be over, without watching its heartbeat."""
    over = run.status != "RUNNING" or not run.attempt_id
    return over or mark.replaces_any or run.attempt_id in mark.replaces | {mark.id}


def wait_until_still(
    run: RemoteRun, read: Callable[[], RemoteRun], wait: Callable[[float], object], still_s: float | None = None
) -> None:
    """Returns when the heartbeat of the attempt that owns ``run`` has not changed for ``still_s`` seconds.

    Compares counters, not clocks. Raises ``AnotherAttemptError`` as soon as the heartbeat changes. ``wait`` sleeps, and
    may raise to end the wait. A reading that fails in an outage is repeated; the last one must succeed, and
    ``OutageError`` is raised if none does for another ``still_s`` seconds.
    """
    began = time.monotonic()
    still_s = STILL_S if still_s is None else still_s
    answered = True
    while (left := began + still_s - time.monotonic()) > 0 or not answered:
        wait(min(POLL_S, left) if left > 0 else POLL_S)
        try:
            now, answered = read(), True
        except OutageError:
            answered = False
            if left < -still_s:
                raise
            continue
        if (now.attempt_id, now.heartbeat) != (run.attempt_id, run.heartbeat):
            raise AnotherAttemptError(
                f"attempt {now.attempt} of run {run.tags.get(names.RUN_KEY, '')} is alive (its heartbeat changes); "
                "wait until it ends, or stop it"
            )
        if may_take_over(now, AttemptMark("", 0)):
            return


def wait_for_owner(
    client: TrackingClient, header: RunHeader, run: RemoteRun, wait: Callable[[float], object] = time.sleep
) -> None:
    """``wait_until_still`` for the attempt that owns ``run`` now."""

    def read() -> RemoteRun:
        return next((each for each in runs_of_key(client, header) if each.run_id == run.run_id), run)

    wait_until_still(run, read, wait)


def claim(
    client: TrackingClient, header: RunHeader, run: RemoteRun, mark: AttemptMark
) -> tuple[RemoteRun, AttemptMark]:
    """Makes ``mark`` the owner of ``run``; returns both, the mark numbered above all earlier attempts.

    Raises ``AnotherAttemptError`` where the run is finished (unless ``mark`` reopens it) or another process claimed it
    at the same moment, ``CancelledRunError`` where it was cancelled.
    """
    check_cancelled(header.run_key, run, mark)
    closed = run.status == "FINISHED" and not mark.reopens
    if run.attempt_id != mark.id:
        if closed:
            raise AnotherAttemptError(
                f"run {header.run_key} was finished by attempt {run.attempt} meanwhile; call again to see its result"
            )
        mark = replace(mark, number=max(mark.number, run.attempt + 1))
        tags = {**attempt_tags(mark), names.HEARTBEAT: str(run.heartbeat + 1), names.REASON: ""}
        client.set_tags(run.run_id, tags)
    if run.status != "RUNNING" and not closed and not (run.cancelled and run.attempt_id == mark.id):
        client.set_status(run.run_id, "RUNNING")
    return check_owner(client, header, run, mark), mark


def attach(client: TrackingClient, header: RunHeader, run: RemoteRun, mark: AttemptMark) -> RemoteRun:
    """The run with ``mark`` as its last attempt, its state and status unchanged: for the replay of an attempt that is
    over.

    That attempt may never have reached the server, which then still has one that it replaced. Raises
    ``AnotherAttemptError`` where the server has any other.
    """
    if run.attempt_id in mark.replaces:
        tags = attempt_tags(replace(mark, number=max(mark.number, run.attempt)))
        client.set_tags(run.run_id, {name: tags[name] for name in (names.ATTEMPT, names.ATTEMPT_ID)})
    return check_owner(client, header, run, mark)


def check_owner(client: TrackingClient, header: RunHeader, run: RemoteRun, mark: AttemptMark) -> RemoteRun:
    """The key's run as it is now. Raises ``AnotherAttemptError`` where an attempt other than ``mark`` owns it."""
    runs = runs_of_key(client, header)
    now = next((each for each in runs if each.run_id == run.run_id), None)
    if now is None or runs[0].run_id != run.run_id:
        raise DuplicateRunError(f"run {run.run_id} of key {header.run_key} was deleted, or duplicates an older one")
    if now.attempt_id != mark.id:
        raise AnotherAttemptError(
            f"attempt {now.attempt} has taken over run {header.run_key}; this one (attempt {mark.number}) stops"
        )
    return now
