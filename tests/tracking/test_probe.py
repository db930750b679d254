"""Requests that only examine MLflow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import requests

from cnn_jobs.tracking import probe
from tests.helpers import servers
from tests.helpers.tracking import MLFLOW_WARNING

pytestmark = pytest.mark.filterwarnings(MLFLOW_WARNING)
TIMEOUTS = {"connect_s": 2.0, "answer_s": 2.0}


def test_timeouts_are_short_whatever_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "9")
    probe.prepare()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "5"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


def test_network_errors_are_those_of_requests() -> None:
    probe.prepare()
    with pytest.raises(requests.ConnectionError):
        probe.ask(f"http://{servers.unused()}", "GET", "/health", **TIMEOUTS)
    with servers.silent() as where, pytest.raises(requests.RequestException, match="Read timed out"):
        probe.ask(f"http://{where}", "GET", "/health", connect_s=1, answer_s=0.2)


def test_fields_of_an_answer() -> None:
    probe.prepare()
    with servers.speaking(lambda path: (503, f"at {path}", {"Content-Type": "text/x", "Date": "today"})) as url:
        answer = probe.ask(url, "GET", "/health", **TIMEOUTS)
    assert (answer.status, answer.text, answer.content_type, answer.date) == (503, "at /health", "text/x", "today")
    assert answer.received_s >= answer.sent_s > 1_700_000_000
    assert answer.milliseconds == 1000 * (answer.received_s - answer.sent_s)


def test_probe_file_is_written_read_and_deleted(mlflow_uri: str, tmp_path: Path) -> None:
    probe.prepare()
    file = probe.ProbeFile(mlflow_uri, str(tmp_path / "artifacts"))
    file.write()
    assert file.read() == file.content
    (path,) = [each for each in (tmp_path / "artifacts").rglob("*") if each.is_file()]
    path.write_bytes(b"changed")
    assert file.read() == b"changed"
    file.delete()
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_artifact_location_of_an_experiment_or_the_default_one(mlflow_uri: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    probe.prepare()
    MlflowClient(mlflow_uri).create_experiment("ours", artifact_location=str(tmp_path / "ours"))
    assert probe.artifact_location(mlflow_uri, "ours") == (str(tmp_path / "ours"), True)
    location, exists = probe.artifact_location(mlflow_uri, "another")
    assert (location.endswith("mlruns/0"), exists) == (True, False)


def test_database_schema(mlflow_uri: str, tmp_path: Path) -> None:
    probe.prepare()
    found = probe.schema(mlflow_uri)
    assert found.found == found.expected
    assert found.known
    assert found.tables > 20
    (tmp_path / "new.db").touch()
    assert probe.schema(f"sqlite:///{tmp_path / 'new.db'}").tables == 0
    assert probe.database_file(mlflow_uri) == tmp_path / "mlflow.db"
    assert probe.database_file("sqlite://") is None
