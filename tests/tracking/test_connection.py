"""Addresses of MLflow, its errors in one line, and calls with a time limit."""

from __future__ import annotations

import threading
import time

import pytest

from cnn_jobs.errors import TrackingUriError
from cnn_jobs.tracking.client import TrackingClient
from cnn_jobs.tracking.connection import (
    OutageError,
    RefusalError,
    call_within,
    check_uri,
    configure_client,
    explain,
    http_status,
    is_transient,
    run_url,
    tracking_uri,
)
from tests.conftest import MLFLOW_WARNING
from tests.helpers.tracking import answering, unused_address


def error_of(uri: str, monkeypatch: pytest.MonkeyPatch) -> Exception:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    configure_client()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException) as caught:
        MlflowClient(uri).get_experiment_by_name("any")
    return caught.value


@pytest.mark.parametrize(
    "uri",
    ["http://localhost:5000", "https://mlflow.example.org/sub", "sqlite:////tmp/a.db", "postgresql+psycopg://u@h/db"],
)
def test_addresses_that_mlflow_can_track_to_are_taken_as_they_are(uri: str) -> None:
    assert check_uri(uri) == uri


@pytest.mark.parametrize(
    "uri", ["", "localhost:5000", "http//localhost", "http://", "http://host:port", "ftp://host/x", "./mlruns"]
)
def test_a_malformed_address_is_refused_with_an_example(uri: str) -> None:
    with pytest.raises(TrackingUriError, match=r"must look like http://host:5000") as caught:
        check_uri(uri)
    assert caught.value.exit_code == 2
    assert repr(uri)[1:-1] in str(caught.value)


def test_a_password_is_never_shown() -> None:
    with pytest.raises(TrackingUriError) as caught:
        check_uri("ftp://me:secret@host/x")
    assert "secret" not in str(caught.value)
    assert "secret" not in run_url("http://me:secret@host:5000/", "1", "abc")


def test_a_runs_page_is_that_of_a_training() -> None:
    page = "http://host:5000/#/experiments/1/runs/abc?workflowType=machine_learning"
    assert run_url("http://host:5000/", "1", "abc") == page
    assert run_url("sqlite:////tmp/a.db", "1", "abc") == "sqlite:////tmp/a.db run abc"


def test_the_address_is_the_environments_else_a_database_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert tracking_uri() == "http://host:5000"


@pytest.mark.parametrize(
    ("status", "hint", "transient"),
    [
        (401, "MLFLOW_TRACKING_USERNAME", False),
        (403, "--allowed-hosts", False),
        (404, "check host, port and path", False),
        (400, "refused", False),
        (408, "refused", True),
        (429, "refused", True),
        (500, "see the server's log", True),
        (503, "see the server's log", True),
    ],
)
def test_an_answer_is_named_with_what_to_do(
    status: int, hint: str, transient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(status) as uri:
        error = error_of(uri, monkeypatch)
        line = explain(error, uri)
    assert hint in line
    assert uri in line
    assert "\n" not in line
    assert is_transient(error) is transient


def test_mlflows_own_json_answer_keeps_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    body = '{"error_code": "PERMISSION_DENIED", "message": "not yours"}'
    with answering(403, body, "application/json") as uri:
        error = error_of(uri, monkeypatch)
    assert http_status(error) == 403
    assert not is_transient(error)


def test_another_kind_of_server_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(418, '{"detail": "I am a teapot"}', "application/json") as uri:
        error = error_of(uri, monkeypatch)
        assert "answered, but not as MLflow does" in explain(error, uri)


def test_no_answer_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = unused_address()
    error = error_of(uri, monkeypatch)
    assert http_status(error) is None
    assert is_transient(error)
    assert explain(error, uri).startswith(f"MLflow at {uri} does not answer")


def test_a_mistake_of_ours_is_no_outage() -> None:
    assert not is_transient(FileNotFoundError("gone"))
    assert not is_transient(TypeError("wrong"))


@pytest.mark.filterwarnings(MLFLOW_WARNING)
def test_a_database_without_its_driver_is_a_mistake_in_one_line() -> None:
    with pytest.raises(TrackingUriError, match="its driver is missing") as caught:
        TrackingClient("mssql+pymssql://user:secret@127.0.0.1/base").has_experiment("any")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


# -- time limits -------------------------------------------------------------------------------------------------------


def test_an_answer_comes_back_also_after_an_outage() -> None:
    faults = [OutageError("away"), OutageError("away")]

    def question() -> str:
        if faults:
            raise faults.pop()
        return threading.current_thread().name

    assert call_within(10, question) == "mlflow-look-up"


def test_an_outage_lasts_until_the_time_is_up() -> None:
    asked = []

    def question() -> None:
        asked.append(1)
        raise OutageError("away")

    began = time.monotonic()
    with pytest.raises(OutageError, match="away"):
        call_within(1.0, question)
    assert 0.2 < time.monotonic() - began < 5
    assert len(asked) > 1


def test_a_question_that_hangs_holds_nobody_up() -> None:
    release = threading.Event()
    with pytest.raises(OutageError, match="no answer within 0 s"):
        call_within(0.1, release.wait)
    release.set()


@pytest.mark.parametrize("error", [RefusalError("no"), ZeroDivisionError("a bug")])
def test_other_errors_are_raised_where_it_was_asked(error: Exception) -> None:
    def question() -> None:
        raise error

    with pytest.raises(type(error)):
        call_within(5, question)
