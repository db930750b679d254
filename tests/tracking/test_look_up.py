"""Questions to MLflow with a time limit."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cnn_jobs.tracking.client import OutageError, RefusalError, TrackingClient
from cnn_jobs.tracking.look_up import fetch_checkpoints, find_run, within
from tests.tracking.conftest import finish, header, recording
from tests.tracking.test_connection import unused_address


def test_an_answer_comes_back_also_after_an_outage() -> None:
    faults = [OutageError("away"), OutageError("away")]

    def question() -> str:
        if faults:
            raise faults.pop()
        return threading.current_thread().name

    assert within(10, question) == "mlflow-look-up"


def test_an_outage_lasts_until_the_time_is_up() -> None:
    asked = []

    def question() -> None:
        asked.append(1)
        raise OutageError("away")

    began = time.monotonic()
    with pytest.raises(OutageError, match="away"):
        within(1.0, question)
    assert 0.2 < time.monotonic() - began < 5
    assert len(asked) > 1


def test_a_question_that_hangs_holds_nobody_up() -> None:
    release = threading.Event()
    with pytest.raises(OutageError, match="no answer within 0 s"):
        within(0.1, release.wait)
    release.set()


@pytest.mark.parametrize("error", [RefusalError("no"), ZeroDivisionError("a bug")])
def test_other_errors_are_raised_where_it_was_asked(error: Exception) -> None:
    def question() -> None:
        raise error

    with pytest.raises(type(error)):
        within(5, question)


def test_a_run_is_found_by_its_key_and_its_checkpoints_are_fetched(mlflow_uri: str, tmp_path: Path) -> None:
    remote = TrackingClient(mlflow_uri)
    assert find_run(remote, header(), 30) is None
    with recording(mlflow_uri, tmp_path) as recorder:
        folder = tmp_path / "key"
        for name in ("last.pt", "best.pt"):
            (folder / name).write_text(name)
            recorder.artifact(folder / name, f"checkpoints/{name}")
        assert finish(recorder)
    found = find_run(remote, header(), 30)
    assert found
    assert found.run_id == recorder.run_id
    (path,) = fetch_checkpoints(remote, found, tmp_path, 30)
    assert path.read_text() == "last.pt"
    assert find_run(remote, header("another"), 30) is None


def test_importing_mlflow_is_not_of_the_time_limit(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, loaded = TrackingClient.load, []

    def slow(self: TrackingClient) -> None:
        time.sleep(1.0)
        real(self)
        loaded.append(1)

    monkeypatch.setattr(TrackingClient, "load", slow)
    began = time.monotonic()
    with pytest.raises(OutageError, match="does not answer"):
        find_run(TrackingClient(unused_address()), header(), 0.3)
    assert time.monotonic() - began > 1.0
    assert loaded


def test_a_server_that_is_away_is_an_outage() -> None:
    with pytest.raises(OutageError, match="does not answer"):
        find_run(TrackingClient(unused_address()), header(), 0.1)
