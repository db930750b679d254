"""Artifacts of a database, and findings from exchanges; servers are tested in tests/integration/test_doctor_mlflow."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cnn_jobs.doctor.artifacts import Exchange, check_artifacts, check_presigned, exchange
from cnn_jobs.tracking import probe
from tests.helpers.tracking import MLFLOW_WARNING

pytestmark = pytest.mark.filterwarnings(MLFLOW_WARNING)
SERVER = "http://mlflow:5000"
PROXIED = Exchange("mlflow-artifacts:/1", True)


@pytest.fixture(autouse=True)
def _mlflow() -> None:
    probe.prepare()


@pytest.fixture
def experiment(mlflow_uri: str, tmp_path: Path) -> Callable[[str], str]:
    """Creates the experiment 'ours' with this artifact location; returns the database's URI."""
    from mlflow import MlflowClient

    def make(location: str) -> str:
        MlflowClient(mlflow_uri).create_experiment("ours", artifact_location=location)
        return mlflow_uri

    return make


def test_a_folder_of_this_machine(experiment: Callable[[str], str], tmp_path: Path) -> None:
    uri = experiment(str(tmp_path / "artifacts"))
    done = exchange(uri, "ours")
    assert (done.exists, done.fault, done.left) == (True, "", "")
    finding = check_artifacts(done, uri, "ours")
    assert (finding.status, str(tmp_path / "artifacts") in finding.found) == ("ok", True)
    assert list((tmp_path / "artifacts").rglob("*")) == []
    assert check_presigned(done).status == "skipped"


def test_a_missing_experiment_is_not_created(mlflow_uri: str) -> None:
    from mlflow import MlflowClient

    done = exchange(mlflow_uri, "new")
    assert not done.exists
    finding = check_artifacts(done, mlflow_uri, "new")
    assert (finding.status, "(of 'Default': 'new' does not exist yet)" in finding.found) == ("ok", True)
    assert MlflowClient(mlflow_uri).get_experiment_by_name("new") is None


def test_a_read_only_folder(experiment: Callable[[str], str], mounted: Callable[[str], Path]) -> None:
    folder = mounted("size=1m")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    uri = experiment(str(folder / "artifacts"))
    finding = check_artifacts(exchange(uri, "ours"), uri, "ours")
    assert (finding.status, "cannot be written" in finding.found) == ("failed", True)
    assert "Read-only file system" in finding.found
    assert "writable" in finding.advice


def test_a_full_folder(experiment: Callable[[str], str], mounted: Callable[[str], Path]) -> None:
    folder = mounted("size=64k")
    uri = experiment(str(folder))
    (folder / "full").write_bytes(b"x" * 65536)
    finding = check_artifacts(exchange(uri, "ours"), uri, "ours")
    assert (finding.status, "No space left" in finding.found) == ("failed", True)


def test_proxied_artifacts_need_the_server(experiment: Callable[[str], str]) -> None:
    uri = experiment("mlflow-artifacts:/1")
    finding = check_artifacts(exchange(uri, "ours"), uri, "ours")
    assert finding.status == "failed"
    assert "http" in finding.found


def test_an_unknown_kind_of_location(experiment: Callable[[str], str]) -> None:
    uri = experiment("nowhere://x")
    finding = check_artifacts(exchange(uri, "ours"), uri, "ours")
    assert (finding.status, "nowhere://x" in finding.found) == ("failed", True)


def test_a_damaged_database_is_a_finding(mlflow_uri: str, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"damaged" * 1000)
    done = exchange(mlflow_uri, "ours")
    assert check_artifacts(done, mlflow_uri, "ours").status == "failed"
    shutil.rmtree(tmp_path / "mlruns", ignore_errors=True)


@pytest.mark.parametrize(
    ("done", "uri", "status", "words"),
    [
        (PROXIED, SERVER, "ok", "through the server"),
        (replace(PROXIED, left="405"), SERVER, "warning", "not deleted (405)"),
        (replace(PROXIED, fault="is read back with another content"), SERVER, "failed", "another content"),
        (Exchange("/srv/mlruns/1", True), SERVER, "failed", "on this machine, not on the server"),
        (Exchange("file:///srv/mlruns/1", True), SERVER, "failed", "on this machine, not on the server"),
        (Exchange("/srv/mlruns/0", False), SERVER, "warning", "on this machine, not on the server"),
        (Exchange("/srv/mlruns/1", True), "http://127.0.0.1:5000", "warning", "right only if the server runs here"),
        (Exchange("s3://bucket/1", True), SERVER, "warning", "every machine that trains needs keys"),
        (Exchange("s3://bucket/1", True, "cannot be written (no keys)"), SERVER, "failed", "no keys"),
        (Exchange("", False), SERVER, "skipped", ""),
    ],
)
def test_the_finding_of_an_exchange(done: Exchange, uri: str, status: str, words: str) -> None:
    finding = check_artifacts(done, uri, "ours")
    assert (finding.status, words in finding.found) == (status, True), finding
    assert bool(finding.advice) == (status in ("warning", "failed"))


def test_a_pod_should_hold_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    done = Exchange("s3://bucket/1", True, "cannot be written (no keys)")
    assert "pods should hold no keys" in check_artifacts(done, SERVER, "ours").advice


@pytest.mark.parametrize(
    ("on", "store", "direct", "status", "words"),
    [
        ("", "", "", "ok", "issues no addresses"),
        ("true", "", "", "ok", "issues no addresses"),
        ("", "http://minio:9000", "it is silent", "ok", "off: files go through the server"),
        ("false", "http://minio:9000", "", "ok", "off: files go through the server"),
        ("true", "http://minio:9000", "", "ok", "on: files come directly from http://minio:9000"),
        ("true", "http://minio:9000", "it is silent", "failed", "sends clients to http://minio:9000"),
    ],
)
def test_presigned_downloads(
    monkeypatch: pytest.MonkeyPatch, on: str, store: str, direct: str, status: str, words: str
) -> None:
    if on:
        monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", on)
    else:
        monkeypatch.delenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", raising=False)
    finding = check_presigned(replace(PROXIED, store=store, direct=direct))
    assert (finding.status, words in finding.found) == (status, True), finding
    if status == "failed":
        assert "set MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD=false" in finding.advice
