"""Faults of real MLflow servers: host names, artifact locations, unreachable stores, locked databases."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import requests

from cnn_jobs.doctor.examination import Subject, mlflow_checks, run
from cnn_jobs.doctor.finding import Finding
from cnn_jobs.tracking import probe
from tests.helpers import servers
from tests.helpers.fault_proxy import Fault, FaultProxy, Request, _Handler

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
DOWNLOADS = "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD"


@contextlib.contextmanager
def mlflow_server(folder: Path, *flags: str, **variables: str) -> Iterator[str]:
    """The URL of a server with these flags, on a database in ``folder``."""
    where = servers.unused()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", where.partition(":")[2]]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", *flags]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **variables}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 90
        while True:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"http://{where}/version", timeout=2).ok:
                    break
            assert process.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield f"http://{where}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def examined(uri: str, experiment: str = "cnn-jobs") -> dict[str, Finding]:
    """The findings of the MLflow checks."""
    probe.prepare()
    subject = Subject(
        data="shapes",
        task="",
        weights="",
        tracking_uri=uri,
        experiment=experiment,
        state_dir=Path("/nowhere"),
        device="cpu",
        threads=0,
    )
    return {each.check: each for each in run(mlflow_checks(subject), 30)}


class ForwardProxy(_Handler):
    """Accepts absolute URLs, as clients send them to a proxy, and forwards them upstream."""

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        self.path = "/" + self.path.split("/", 3)[3]
        return parsed


class Store:
    """An MLflow server on S3, with a proxy before the bucket that applies ``fault`` to presigned URLs."""

    def __init__(self, url: str, bucket: str, proxy: FaultProxy, folder: Path) -> None:
        self.url, self.bucket, self.proxy, self.folder = url, bucket, proxy, folder
        self.fault = Fault.PASS

    def schedule(self, request: Request) -> Fault:
        """The server signs requests in a header, a presigned URL in its query."""
        return self.fault if "X-Amz-Signature" in request.path else Fault.PASS

    def keys(self) -> list[str]:
        listed = boto3.client("s3").list_objects_v2(Bucket=self.bucket)
        return [each["Key"] for each in listed.get("Contents", [])]

    def experiment(self, name: str, location: str | None = None) -> str:
        """Creates an experiment; returns its name."""
        from mlflow import MlflowClient

        MlflowClient(self.url).create_experiment(name, artifact_location=location)
        return name


@pytest.fixture(scope="module")
def store(moto_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("on-s3")
    host, _, port = moto_server.removeprefix("http://").partition(":")
    keys = {"AWS_ACCESS_KEY_ID": "the-key", "AWS_SECRET_ACCESS_KEY": "the-secret", "AWS_DEFAULT_REGION": "us-east-1"}
    boto3.client(
        "s3", endpoint_url=moto_server, aws_access_key_id="the-key", aws_secret_access_key="the-secret"
    ).create_bucket(Bucket="artifacts")
    with FaultProxy((host, int(port)), hang_s=60) as proxy:
        variables = {**keys, "MLFLOW_S3_ENDPOINT_URL": proxy.url, "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE": "path"}
        flags = ("--artifacts-destination", "s3://artifacts/runs")
        with mlflow_server(folder, *flags, **variables) as url:
            found = Store(url, "artifacts", proxy, folder)
            proxy.schedule = found.schedule
            yield found


@pytest.fixture
def keys(aws: None, moto_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys for the bucket, in this process, too."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_server)
    monkeypatch.setenv("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "path")


def test_artifacts_go_through_the_server_and_nothing_remains(store: Store, keys: None) -> None:
    from mlflow import MlflowClient

    found = examined(store.url)
    assert {name: each.status for name, each in found.items()} == dict.fromkeys(found, "ok"), found
    assert "mlflow-artifacts:/0" in found["MLflow artifacts"].found
    assert "off: files go through the server" in found["presigned downloads"].found
    assert f"could be fetched from {store.proxy.url}" in found["presigned downloads"].found
    assert store.keys() == []
    names = [each.name for each in MlflowClient(store.url).search_experiments()]
    assert "cnn-jobs" not in names
    assert MlflowClient(store.url).search_runs(["0"]) == []


def test_a_store_that_only_the_server_can_reach(store: Store, keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "fault", Fault.HANG)
    found = examined(store.url)
    assert found["MLflow artifacts"].status == "ok"
    assert found["presigned downloads"].status == "ok"
    assert "from here they cannot (" in found["presigned downloads"].found
    # With the switch on, as in a plain MLflow client, which would wait for minutes.
    monkeypatch.setenv(DOWNLOADS, "true")
    found = examined(store.url)
    assert found["MLflow artifacts"].status == "ok"
    assert found["presigned downloads"].status == "failed"
    assert f"{DOWNLOADS} sends clients to {store.proxy.url}, and there: " in found["presigned downloads"].found
    assert "sends no answer" in found["presigned downloads"].found
    assert f"set {DOWNLOADS}=false" in found["presigned downloads"].advice
    assert "X-Amz" not in str(found)
    assert store.keys() == []


def test_a_store_that_refuses_presigned_urls(store: Store, keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "fault", Fault.BAD_REQUEST)
    monkeypatch.setenv(DOWNLOADS, "true")
    found = examined(store.url)["presigned downloads"]
    assert (found.status, found.found.endswith("and there: it answers 400")) == ("failed", True)


def test_a_store_that_clients_reach_directly(store: Store, keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DOWNLOADS, "true")
    found = examined(store.url)["presigned downloads"]
    assert (found.status, found.found) == ("ok", f"on: files come directly from {store.proxy.url}")


def test_a_store_that_refuses_the_server(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.proxy, "schedule", lambda request: Fault.BAD_REQUEST)
    found = examined(store.url)
    assert found["MLflow database"].status == "ok"
    assert found["MLflow artifacts"].status == "failed"
    assert "a file cannot be written" in found["MLflow artifacts"].found
    assert "--artifacts-destination" in found["MLflow artifacts"].advice


def test_artifacts_that_bypass_the_server(store: Store, keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    name = store.experiment("direct", "s3://artifacts/direct")
    found = examined(store.url, name)["MLflow artifacts"]
    assert (found.status, "every machine that trains needs keys" in found.found) == ("warning", True)
    assert "--artifacts-destination" in found.advice
    assert store.keys() == []
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    from mlflow.store.artifact import s3_artifact_repo

    # Both cache the first keys for the lifetime of the process.
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    found = examined(store.url, name)["MLflow artifacts"]
    assert (found.status, "Unable to locate credentials" in found.found) == ("failed", True)
    assert "pods should hold no keys" in found.advice


def test_artifacts_in_a_folder_of_another_machine(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = store.experiment("folder", str(tmp_path / "artifacts"))
    found = examined(store.url, name)["MLflow artifacts"]
    assert (found.status, "right only if the server runs here" in found.found) == ("warning", True)
    # Under another name than loopback, as from a pod; a proxy simulates the network.
    host, _, port = store.url.removeprefix("http://").partition(":")
    with FaultProxy((host, int(port))) as network:
        network.RequestHandlerClass = ForwardProxy
        monkeypatch.setenv("HTTP_PROXY", network.url)
        monkeypatch.setenv("NO_PROXY", "")
        found = examined("http://mlflow.example:5000", name)["MLflow artifacts"]
    assert (found.status, "on this machine, not on the server" in found.found) == ("failed", True), found
    assert not list(tmp_path.rglob("doctor-*"))


def test_a_locked_database(store: Store) -> None:
    holder = sqlite3.connect(store.folder / "mlflow.db", isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(20, holder.close)
    release.start()
    try:
        found = examined(store.url)
    finally:
        release.cancel()
        holder.close()
    assert found["MLflow answers"].status == "ok"
    assert found["MLflow database"].status == "failed"
    assert "/health answers, but a search of experiments does not" in found["MLflow database"].found
    assert found["MLflow artifacts"].status == "skipped"


def test_a_server_that_rejects_its_host_name(tmp_path: Path) -> None:
    with mlflow_server(tmp_path, "--allowed-hosts", "mlflow,mlflow:*") as url:
        found = examined(url)
        assert found["MLflow answers"].status == "ok"
        assert found["MLflow version"].status == "ok"
        assert found["MLflow host name"].status == "failed"
        assert "--allowed-hosts '127.0.0.1,127.0.0.1:*'" in found["MLflow host name"].advice
        assert [found[name].status for name in ("MLflow database", "MLflow artifacts")] == ["skipped"] * 2
