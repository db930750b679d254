"""Addresses of MLflow, its errors in one line, and calls with a time limit."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cnn_jobs.errors import TrackingUriError
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
from tests.helpers.servers import answering, unused_url


@pytest.mark.parametrize(
    "uri",
    ["http://localhost:5000", "https://mlflow.example.org/sub", "sqlite:////tmp/a.db", "postgresql+psycopg://u@h/db"],
)
def test_usable_address_is_accepted_unchanged(uri: str) -> None:
    assert check_uri(uri) == uri


@pytest.mark.parametrize(
    "uri",
    ["", "localhost:5000", "http//localhost", "http://", "http://host:port", "ftp://host/x", "./mlruns", "http://[x"],
)
def test_malformed_address_is_rejected_with_an_example(uri: str) -> None:
    with pytest.raises(TrackingUriError, match=r"must look like http://host:5000") as caught:
        check_uri(uri)
    assert caught.value.exit_code == 2
    assert f"'{uri}'" in str(caught.value)


def test_passwords_are_hidden() -> None:
    with pytest.raises(TrackingUriError) as caught:
        check_uri("ftp://me:secret@host/x")
    assert "secret" not in str(caught.value)
    assert "secret" not in run_url("http://me:secret@host:5000/", "1", "abc")


def test_url_of_a_run() -> None:
    page = "http://host:5000/#/experiments/1/runs/abc?workflowType=machine_learning"
    assert run_url("http://host:5000/", "1", "abc") == page
    assert run_url("sqlite:////tmp/a.db", "1", "abc") == "sqlite:////tmp/a.db run abc"


def test_default_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert tracking_uri() == "http://mlflow:5000"  # the Service of k8s/stack
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert tracking_uri() == "http://host:5000"


# -- errors ------------------------------------------------------------------------------------------------------------


def error_of(uri: str, monkeypatch: pytest.MonkeyPatch) -> Exception:
    """What MLflow's client raises for a call."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    configure_client()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException) as caught:
        MlflowClient(uri).get_experiment_by_name("any")
    return caught.value


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
def test_error_response_is_one_line_with_advice(
    status: int, hint: str, transient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(status) as uri:
        error = error_of(uri, monkeypatch)
        line = explain(error, uri)
    assert hint in line
    assert uri in line
    assert "\n" not in line
    assert is_transient(error) is transient


def test_error_in_json_keeps_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    body = '{"error_code": "PERMISSION_DENIED", "message": "not yours"}'
    with answering(403, body, "application/json") as uri:
        error = error_of(uri, monkeypatch)
    assert http_status(error) == 403
    assert not is_transient(error)


def test_server_that_is_not_mlflow_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(418, '{"detail": "I am a teapot"}', "application/json") as uri:
        error = error_of(uri, monkeypatch)
        assert "answered, but not as MLflow does" in explain(error, uri)


def test_refused_connection_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = unused_url()
    error = error_of(uri, monkeypatch)
    assert http_status(error) is None
    assert is_transient(error)
    assert explain(error, uri).startswith(f"MLflow at {uri} does not answer")


def test_bug_is_not_an_outage() -> None:
    assert not is_transient(FileNotFoundError("gone"))
    assert not is_transient(TypeError("wrong"))


# -- time limits -------------------------------------------------------------------------------------------------------


def test_call_is_repeated_after_an_outage() -> None:
    faults = [OutageError("away"), OutageError("away")]

    def call() -> str:
        if faults:
            raise faults.pop()
        return threading.current_thread().name

    assert call_within(10, call) == "mlflow-look-up"


def test_outage_ends_with_the_time_limit() -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        raise OutageError("away")

    began = time.monotonic()
    with pytest.raises(OutageError, match="away"):
        call_within(1.0, call)
    assert 0.2 < time.monotonic() - began < 5
    assert len(calls) > 1


def test_hanging_call_does_not_block() -> None:
    release = threading.Event()
    with pytest.raises(OutageError, match="no answer within 0 s"):
        call_within(0.1, release.wait)
    release.set()


@pytest.mark.parametrize("error", [RefusalError("no"), ZeroDivisionError("a bug")])
def test_other_errors_are_raised_in_the_calling_thread(error: Exception) -> None:
    def call() -> None:
        raise error

    with pytest.raises(type(error)):
        call_within(5, call)
