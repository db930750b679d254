"""One MLflow run for a run key, and one attempt at a time in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from cnn_jobs.errors import AnotherAttemptError, CancelledRunError, CheckpointMismatchError
from cnn_jobs.tracking import names
from cnn_jobs.tracking.client import OutageError, RemoteRun, TrackingClient
from cnn_jobs.tracking.records import AttemptMark, RunHeader

RUN_KEY_TAG = names.RUN_KEY
HEARTBEAT_INTERVAL_S = 10.0
# A living attempt moves its counter at least once in this time, whatever its pauses between two tries (at most 30 s).
STILL_S = 60.0
POLL_S = 2.0


def runs_of_key(remote: TrackingClient, header: RunHeader) -> list[RemoteRun]:
    """The runs that carry the key; more than one for a moment, when two processes made it at the same time."""
    return remote.find(header.experiment, RUN_KEY_TAG, header.run_key)


def find_or_create(remote: TrackingClient, header: RunHeader, mark: AttemptMark) -> RemoteRun:
    """The key's run; of twins the oldest, empty ones are deleted. Raises ``OutageError`` where that stays unclear."""
    runs = runs_of_key(remote, header)
    if not runs:
        remote.create(header, {**attempt_tags(mark), **parent_tag(remote, header)})
        # Another process may have been as quick: what counts is what is there now.
        runs = runs_of_key(remote, header)
    if not runs:
        raise OutageError(f"run {header.run_key} was made, but MLflow does not list it yet")
    for twin in runs[1:]:
        # One of this attempt's own is no loss: the journal has it all.
        if twin.attempt_id == mark.id or (not twin.metrics and not twin.params):
            remote.delete(twin.run_id)
    return runs[0]


def parent_tag(remote: TrackingClient, header: RunHeader) -> dict[str, str]:
    """MLflow's tag for a run below another; empty where the parent is not there, or not yet."""
    if not header.parent_key:
        return {}
    parents = remote.find(header.experiment, RUN_KEY_TAG, header.parent_key)
    return {names.PARENT_RUN_ID: parents[0].run_id} if parents else {}


def check_role(key: str, tags: Mapping[str, str], role: str, where: str) -> None:
    """Raises ``CheckpointMismatchError`` where the key is that of something else: a series, one run, a document."""
    roles = {"": "one run", "parent": "a series of runs", "document": "a document"}
    found = tags.get(names.ROLE, "")
    if found != role:
        raise CheckpointMismatchError(
            f"run {key}: {where} is {roles.get(found, found)}, this command is of {roles[role]}; use another --run-key"
        )


def check_cancelled(key: str, run: RemoteRun, mark: AttemptMark) -> None:
    """Raises ``CancelledRunError`` (exit 2: a Job starts no other pod) where the run was cancelled, and is not this
    attempt's own already."""
    if run.cancelled and run.status != "FINISHED" and run.attempt_id != mark.id and not mark.revives:
        raise CancelledRunError(f"run {key} was cancelled; use another --run-key, or go on with it by --resume must")


def attempt_tags(mark: AttemptMark) -> dict[str, str]:
    """What says whose turn it is."""
    return {
        names.ATTEMPT: str(mark.number),
        names.ATTEMPT_ID: mark.id,
        names.STATE: "running",
        names.HEARTBEAT: "0",
    }


def may_take_over(run: RemoteRun, mark: AttemptMark) -> bool:
    """Whether the attempt that has the run is surely over, without watching it."""
    over = run.status != "RUNNING" or not run.attempt_id
    return over or mark.replaces_any or run.attempt_id in mark.replaces | {mark.id}


def wait_until_still(
    run: RemoteRun, read: Callable[[], RemoteRun], wait: Callable[[float], object], still_s: float | None = None
) -> None:
    """Returns when the heartbeat of the attempt that has ``run`` has not moved for ``still_s`` seconds.

    Counters are compared, not clocks. Raises ``AnotherAttemptError`` as soon as it moves. ``wait`` sleeps; it may
    raise to give up. A reading that is lost on a bad line is tried again; the last one must have come, and raises
    ``OutageError`` where none does for as long again.
    """
    began = time.monotonic()
    still_s = STILL_S if still_s is None else still_s
    came = True
    while (left := began + still_s - time.monotonic()) > 0 or not came:
        wait(min(POLL_S, left) if left > 0 else POLL_S)
        try:
            now, came = read(), True
        except OutageError:
            came = False
            if left < -still_s:
                raise
            continue
        if (now.attempt_id, now.heartbeat) != (run.attempt_id, run.heartbeat):
            raise AnotherAttemptError(
                f"attempt {now.attempt} of run {run.tags.get(RUN_KEY_TAG, '')} is alive (its heartbeat moves); "
                "wait for its end or stop it"
            )
        if may_take_over(now, AttemptMark("", 0)):
            return


def claim(
    remote: TrackingClient, header: RunHeader, run: RemoteRun, mark: AttemptMark
) -> tuple[RemoteRun, AttemptMark]:
    """Makes ``mark`` the attempt that has ``run``; returns both as they are then, the number above all before it.

    Raises ``AnotherAttemptError`` where the run is finished (and ``mark`` does not reopen it), or another process
    claimed it in the same moment; ``CancelledRunError`` where it was cancelled.
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
        remote.set_tags(run.run_id, tags)
    if run.status != "RUNNING" and not closed and not (run.cancelled and run.attempt_id == mark.id):
        remote.set_status(run.run_id, "RUNNING")
    return check_claim(remote, header, run, mark), mark


def adopt(remote: TrackingClient, header: RunHeader, run: RemoteRun, mark: AttemptMark) -> RemoteRun:
    """The run, with ``mark`` as its last attempt; its state and status stay as they are.

    For an attempt that is over, and may never have reached the server: then the server still names one of those that
    it replaced. Raises ``AnotherAttemptError`` where it names any other.
    """
    if run.attempt_id in mark.replaces:
        tags = attempt_tags(replace(mark, number=max(mark.number, run.attempt)))
        remote.set_tags(run.run_id, {name: tags[name] for name in (names.ATTEMPT, names.ATTEMPT_ID)})
    return check_claim(remote, header, run, mark)


def check_claim(remote: TrackingClient, header: RunHeader, run: RemoteRun, mark: AttemptMark) -> RemoteRun:
    """The key's run as it is now. Raises ``AnotherAttemptError`` where an attempt other than ``mark`` has it."""
    runs = runs_of_key(remote, header)
    now = next((each for each in runs if each.run_id == run.run_id), None)
    if now is None or runs[0].run_id != run.run_id:
        raise DuplicateRunError(f"run {run.run_id} of key {header.run_key} was deleted, or is a twin of an older one")
    if now.attempt_id != mark.id:
        raise AnotherAttemptError(
            f"attempt {now.attempt} has taken over run {header.run_key}; this one (attempt {mark.number}) stops"
        )
    return now


class DuplicateRunError(OutageError):
    """The run that was joined is not, or no longer, the one that counts: join again."""
