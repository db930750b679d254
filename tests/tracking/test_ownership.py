"""One run for a key, one attempt at a time."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace

import pytest

from cnn_jobs.errors import AnotherAttemptError, TrackingError
from cnn_jobs.tracking import ownership
from cnn_jobs.tracking.client import RemoteRun, TrackingClient
from cnn_jobs.tracking.connection import OutageError
from cnn_jobs.tracking.ownership import DuplicateRunError, claim, find_or_create, find_run, wait_until_still
from cnn_jobs.tracking.records import AttemptMark, Metric
from tests.helpers.servers import unused_url
from tests.helpers.tracking import client, header

FIRST, SECOND = AttemptMark("first", 1), AttemptMark("second", 1)


@pytest.fixture
def remote(mlflow_uri: str) -> TrackingClient:
    return TrackingClient(mlflow_uri)


@pytest.fixture
def run(remote: TrackingClient) -> RemoteRun:
    """A run that attempt ``FIRST`` owns."""
    return find_or_create(remote, header(), FIRST)


def runs(remote: TrackingClient) -> list[RemoteRun]:
    return ownership.runs_of_key(remote, header())


# -- finding the run ---------------------------------------------------------------------------------------------------


def test_run_is_created_once(remote: TrackingClient) -> None:
    created = find_or_create(remote, header(tags={"a": "b"}), FIRST)
    assert created.tags["cnn_jobs.run_key"] == "key"
    assert (created.tags["a"], created.attempt, created.attempt_id, created.status) == ("b", 1, "first", "RUNNING")
    assert find_or_create(remote, header(), SECOND).run_id == created.run_id


def test_oldest_duplicate_counts_and_empty_ones_are_deleted(remote: TrackingClient) -> None:
    old, young = header(start_ms=1000), header(start_ms=2000)
    remote.create(young, ownership.attempt_tags(SECOND))
    remote.create(old, ownership.attempt_tags(FIRST))
    remote.create(replace(young, start_ms=3000), ownership.attempt_tags(AttemptMark("third", 1)))
    oldest, second, third = runs(remote)
    assert (oldest.attempt_id, second.attempt_id) == ("first", "second")
    remote.log_metrics(second.run_id, [Metric("m", 1.0, 1, 1)])
    assert find_or_create(remote, old, FIRST).run_id == oldest.run_id
    assert [each.run_id for each in runs(remote)] == [oldest.run_id, second.run_id]
    assert third.run_id not in {each.run_id for each in runs(remote)}
    # An attempt's own duplicate is deleted with its rows: the journal has them.
    assert find_or_create(remote, young, SECOND).run_id == oldest.run_id
    assert [each.run_id for each in runs(remote)] == [oldest.run_id]


def test_run_is_found_by_its_key(remote: TrackingClient) -> None:
    assert find_run(remote, header(), 30) is None
    created = find_or_create(remote, header(), FIRST)
    assert find_run(remote, header(), 30) == created
    assert find_run(remote, header("another"), 30) is None


def test_time_limit_of_a_look_up_excludes_the_import_of_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    real, loaded = TrackingClient.load, []

    def slow(self: TrackingClient) -> None:
        time.sleep(0.4)
        real(self)
        loaded.append(1)

    monkeypatch.setattr(TrackingClient, "load", slow)
    began = time.monotonic()
    with pytest.raises(OutageError, match=r"does not answer|gave no answer"):
        find_run(TrackingClient(unused_url()), header(), 0.1)
    assert time.monotonic() - began > 0.4
    assert loaded


# -- ownership ---------------------------------------------------------------------------------------------------------


def test_claim_takes_the_next_number_and_reopens_the_run(mlflow_uri: str, remote: TrackingClient) -> None:
    created = find_or_create(remote, header(), replace(FIRST, number=4))
    client(mlflow_uri).set_terminated(created.run_id, "KILLED")
    client(mlflow_uri).set_tag(created.run_id, "cnn_jobs.reason", "stopped")
    (killed,) = runs(remote)
    now, mark = claim(remote, header(), killed, SECOND)
    assert (now.status, now.attempt, now.attempt_id, mark.number) == ("RUNNING", 5, "second", 5)
    assert now.tags["cnn_jobs.reason"] == ""
    with pytest.raises(AnotherAttemptError, match="attempt 5 has taken over run key"):
        ownership.check_owner(remote, header(), killed, FIRST)


def test_finished_run_cannot_be_claimed(mlflow_uri: str, remote: TrackingClient, run: RemoteRun) -> None:
    client(mlflow_uri).set_terminated(run.run_id, "FINISHED")
    (finished,) = runs(remote)
    with pytest.raises(AnotherAttemptError, match="was finished by attempt 1"):
        claim(remote, header(), finished, SECOND)
    assert client(mlflow_uri).get_run(run.run_id).info.status == "FINISHED"


def test_deleted_run_has_no_owner(remote: TrackingClient, run: RemoteRun) -> None:
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
def test_takeover_without_watching(status: str, attempt_id: str, mark: AttemptMark, may: bool) -> None:
    run = RemoteRun("id", "1", "a run", status, 0, {}, {}, {"cnn_jobs.attempt_id": attempt_id})
    assert ownership.may_take_over(run, mark) is may


def test_concurrent_claims_make_one_run_with_one_owner(mlflow_uri: str) -> None:
    owners: list[str] = []
    start = threading.Barrier(6)

    def attempt(number: int) -> None:
        remote, mark, own = (
            TrackingClient(mlflow_uri),
            AttemptMark(f"attempt-{number}", 1),
            header(start_ms=1000 + number),
        )
        start.wait()
        while True:
            try:
                found = find_or_create(remote, own, mark)
                if not ownership.may_take_over(found, mark):
                    return
                claim(remote, own, found, mark)
                ownership.check_owner(remote, header(), found, mark)
                owners.append(mark.id)
                return
            except AnotherAttemptError:
                return
            except TrackingError:
                continue  # a busy database, or a duplicate that was deleted

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    (found,) = runs(TrackingClient(mlflow_uri))
    # An earlier claim of a younger duplicate counts as lost at its owner's next check.
    assert found.attempt_id in {f"attempt-{number}" for number in range(6)}
    assert owners


# -- watching a heartbeat ----------------------------------------------------------------------------------------------


def beaten(run: RemoteRun) -> RemoteRun:
    """The run after a heartbeat."""
    return replace(run, tags={**run.tags, "cnn_jobs.heartbeat": "1"})


@pytest.fixture
def _quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "POLL_S", 0.02)


def test_heartbeat_is_watched_until_it_changes_or_time_is_up(run: RemoteRun) -> None:
    readings = iter([run, run, beaten(run)])
    waits: list[float] = []
    with pytest.raises(AnotherAttemptError, match="is alive"):
        wait_until_still(run, lambda: next(readings), waits.append, still_s=60)
    assert len(waits) == 3
    wait_until_still(run, lambda: run, threading.Event().wait, still_s=0.1)
    # The watched attempt ended.
    wait_until_still(run, lambda: replace(run, status="KILLED"), waits.append, still_s=60)


@pytest.mark.usefixtures("_quick_polls")
def test_lost_readings_do_not_end_the_watch(run: RemoteRun) -> None:
    """Three of four are lost, and the change is seen all the same."""
    numbers = itertools.count()

    def read(late: RemoteRun = run) -> RemoteRun:
        number = next(numbers)
        if number % 4:
            raise OutageError("lost")
        return late if number > 8 else run

    with pytest.raises(AnotherAttemptError, match="is alive"):
        wait_until_still(run, lambda: read(beaten(run)), lambda seconds: None, still_s=60)
    numbers = itertools.count(1)  # the last reading in time is lost: another one follows
    wait_until_still(run, read, threading.Event().wait, still_s=0.1)


@pytest.mark.usefixtures("_quick_polls")
def test_watch_without_any_reading_ends_in_an_outage(run: RemoteRun) -> None:
    def read() -> RemoteRun:
        raise OutageError("dead")

    with pytest.raises(OutageError):
        wait_until_still(run, read, threading.Event().wait, still_s=0.1)


def test_header_of_a_run_holds_no_secrets() -> None:
    """It also identifies a finished series, and stands in the journal."""
    tags = {"mlflow.note.content": "data of http://ann:hunter2@host/x"}
    assert header(tags=tags).tags == {"mlflow.note.content": "data of http://ann:***@host/x"}
