"""One run for a key, one attempt at a time."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cnn_jobs.errors import AnotherAttemptError, TrackingError
from cnn_jobs.tracking import ownership
from cnn_jobs.tracking.client import RemoteRun, TrackingClient
from cnn_jobs.tracking.connection import OutageError
from cnn_jobs.tracking.ownership import DuplicateRunError, find_run
from cnn_jobs.tracking.records import AttemptMark, Metric
from tests.helpers.runs import client
from tests.helpers.tracking import finish, header, recording, unused_address

FIRST, SECOND = AttemptMark("first", 1), AttemptMark("second", 1)


def test_a_run_is_made_once(mlflow_uri: str) -> None:
    remote = TrackingClient(mlflow_uri)
    made = ownership.find_or_create(remote, header(tags={"a": "b"}), FIRST)
    assert made.tags["cnn_jobs.run_key"] == "key"
    assert (made.tags["a"], made.attempt, made.attempt_id, made.status) == ("b", 1, "first", "RUNNING")
    assert ownership.find_or_create(remote, header(), SECOND).run_id == made.run_id


def test_of_twins_the_oldest_counts_and_empty_ones_go(mlflow_uri: str) -> None:
    remote = TrackingClient(mlflow_uri)
    old, young = header(start_ms=1000), header(start_ms=2000)
    remote.create(young, ownership.attempt_tags(SECOND))
    remote.create(old, ownership.attempt_tags(FIRST))
    remote.create(replace(young, start_ms=3000), ownership.attempt_tags(AttemptMark("third", 1)))
    oldest, second, third = ownership.runs_of_key(remote, old)
    assert (oldest.attempt_id, second.attempt_id) == ("first", "second")
    remote.log_metrics(second.run_id, [Metric("m", 1.0, 1, 1)])
    assert ownership.find_or_create(remote, old, FIRST).run_id == oldest.run_id
    assert [run.run_id for run in ownership.runs_of_key(remote, old)] == [oldest.run_id, second.run_id]
    assert third.run_id not in {run.run_id for run in ownership.runs_of_key(remote, old)}
    # Its own attempt's rows are in its journal: it moves to the older run.
    assert ownership.find_or_create(remote, young, SECOND).run_id == oldest.run_id
    assert [run.run_id for run in ownership.runs_of_key(remote, old)] == [oldest.run_id]


def test_a_claim_raises_the_number_and_reopens_what_was_stopped(mlflow_uri: str) -> None:
    remote = TrackingClient(mlflow_uri)
    run = ownership.find_or_create(remote, header(), replace(FIRST, number=4))
    client(mlflow_uri).set_terminated(run.run_id, "KILLED")
    client(mlflow_uri).set_tag(run.run_id, "cnn_jobs.reason", "stopped")
    (run,) = ownership.runs_of_key(remote, header())
    now, mark = ownership.claim(remote, header(), run, SECOND)
    assert (now.status, now.attempt, now.attempt_id, mark.number) == ("RUNNING", 5, "second", 5)
    assert now.tags["cnn_jobs.reason"] == ""
    with pytest.raises(AnotherAttemptError, match="attempt 5 has taken over run key"):
        ownership.check_owner(remote, header(), run, FIRST)


def test_a_finished_run_is_not_claimed(mlflow_uri: str) -> None:
    remote = TrackingClient(mlflow_uri)
    run = ownership.find_or_create(remote, header(), FIRST)
    client(mlflow_uri).set_terminated(run.run_id, "FINISHED")
    (run,) = ownership.runs_of_key(remote, header())
    with pytest.raises(AnotherAttemptError, match="was finished by attempt 1"):
        ownership.claim(remote, header(), run, SECOND)
    assert client(mlflow_uri).get_run(run.run_id).info.status == "FINISHED"


def test_a_run_that_is_gone_is_joined_anew(mlflow_uri: str) -> None:
    remote = TrackingClient(mlflow_uri)
    run = ownership.find_or_create(remote, header(), FIRST)
    remote.delete(run.run_id)
    with pytest.raises(DuplicateRunError):
        ownership.check_owner(remote, header(), run, FIRST)


@pytest.mark.parametrize(
    ("status", "attempt_id", "mark", "may"),
    [
        ("RUNNING", "other", AttemptMark("me", 1), False),
        ("RUNNING", "other", AttemptMark("me", 1, replaces=frozenset({"other"})), True),
        ("RUNNING", "other", AttemptMark("me", 1, replaces=frozenset({"another"})), False),
        ("RUNNING", "other", AttemptMark("me", 1, replaces_any=True), True),
        ("RUNNING", "me", AttemptMark("me", 1), True),
        ("RUNNING", "", AttemptMark("me", 1), True),
        ("KILLED", "other", AttemptMark("me", 1), True),
        ("FAILED", "other", AttemptMark("me", 1), True),
    ],
)
def test_who_may_take_over_at_once(mlflow_uri: str, status: str, attempt_id: str, mark: AttemptMark, may: bool) -> None:
    run = ownership.find_or_create(TrackingClient(mlflow_uri), header(), FIRST)
    tags = {**run.tags, "cnn_jobs.attempt_id": attempt_id}
    assert ownership.may_take_over(replace(run, status=status, tags=tags), mark) is may


def test_a_heartbeat_is_watched_until_it_moves_or_time_is_up(mlflow_uri: str) -> None:
    run = ownership.find_or_create(TrackingClient(mlflow_uri), header(), FIRST)
    moved = replace(run, tags={**run.tags, "cnn_jobs.heartbeat": "1"})
    readings = iter([run, run, moved])
    waits: list[float] = []
    with pytest.raises(AnotherAttemptError, match="is alive"):
        ownership.wait_until_still(run, lambda: next(readings), waits.append, still_s=60)
    assert len(waits) == 3
    ownership.wait_until_still(run, lambda: run, threading.Event().wait, still_s=0.1)
    # It ended meanwhile: nothing to wait for.
    ownership.wait_until_still(run, lambda: replace(run, status="KILLED"), waits.append, still_s=60)


def test_readings_that_are_lost_on_a_bad_line_do_not_end_the_watch(
    mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four three are lost; that the heartbeat moved is found out all the same."""
    monkeypatch.setattr(ownership, "POLL_S", 0.02)
    run = ownership.find_or_create(TrackingClient(mlflow_uri), header(), FIRST)
    moved = replace(run, tags={**run.tags, "cnn_jobs.heartbeat": "1"})
    numbers = itertools.count()

    def read(late: object = run) -> RemoteRun:
        number = next(numbers)
        if number % 4:
            raise OutageError("lost")
        return late if number > 8 else run  # type: ignore[return-value]

    with pytest.raises(AnotherAttemptError, match="is alive"):
        ownership.wait_until_still(run, lambda: read(moved), lambda seconds: None, still_s=60)
    numbers = itertools.count(1)  # the last reading within the time is lost: one more is asked for
    ownership.wait_until_still(run, read, threading.Event().wait, still_s=0.1)


def test_a_watch_over_a_line_that_stays_dead_ends(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "POLL_S", 0.02)
    run = ownership.find_or_create(TrackingClient(mlflow_uri), header(), FIRST)

    def read() -> RemoteRun:
        raise OutageError("dead")

    with pytest.raises(OutageError):
        ownership.wait_until_still(run, read, threading.Event().wait, still_s=0.1)


def test_many_at_once_make_one_run_with_one_owner(mlflow_uri: str, tmp_path: Path) -> None:
    owners: list[str] = []
    start = threading.Barrier(6)

    def join(number: int) -> None:
        remote, mark = TrackingClient(mlflow_uri), AttemptMark(f"attempt-{number}", 1)
        start.wait()
        while True:
            try:
                run = ownership.find_or_create(remote, header(start_ms=1000 + number), mark)
                if not ownership.may_take_over(run, mark):
                    return
                ownership.claim(remote, header(start_ms=1000 + number), run, mark)
                ownership.check_owner(remote, header(), run, mark)
                owners.append(mark.id)
                return
            except AnotherAttemptError:
                return
            except TrackingError:
                continue  # a busy database, or a twin that was deleted: join again

    threads = [threading.Thread(target=join, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    (run,) = ownership.runs_of_key(TrackingClient(mlflow_uri), header())
    # Whoever thought so before an older twin turned up finds out at the next look.
    assert run.attempt_id in {f"attempt-{number}" for number in range(6)}
    assert owners


# -- the look-up before a training -----------------------------------------------------------------------------------


def test_a_run_is_found_by_its_key(mlflow_uri: str, tmp_path: Path) -> None:
    client = TrackingClient(mlflow_uri)
    assert find_run(client, header(), 30) is None
    with recording(mlflow_uri, tmp_path) as recorder:
        assert finish(recorder)
    found = find_run(client, header(), 30)
    assert found
    assert found.run_id == recorder.run_id
    assert find_run(client, header("another"), 30) is None


def test_the_time_limit_excludes_the_import_of_mlflow(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, loaded = TrackingClient.load, []

    def slow(self: TrackingClient) -> None:
        time.sleep(1.0)
        real(self)
        loaded.append(1)

    monkeypatch.setattr(TrackingClient, "load", slow)
    began = time.monotonic()
    with pytest.raises(OutageError, match=r"does not answer|gave no answer"):
        find_run(TrackingClient(unused_address()), header(), 0.3)
    assert time.monotonic() - began > 1.0
    assert loaded


def test_a_server_that_is_away_is_an_outage() -> None:
    with pytest.raises(OutageError, match=r"does not answer|gave no answer"):
        find_run(TrackingClient(unused_address()), header(), 0.1)
