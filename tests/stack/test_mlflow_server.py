"""MLflow's containers as in the manifests, on PostgreSQL (if it is installed) and S3."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import io
import subprocess
import threading
import time
from pathlib import Path

import boto3
import pytest

from cnn_jobs.local_server.server import free_port
from tests.helpers.kustomize import STACK
from tests.helpers.mlflow_pod import POD_IP, Running, command, container_of, environment, run_container
from tests.helpers.postgres_server import PASSWORD, Database, has_postgres
from tests.helpers.tracking import MLFLOW_WARNING

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings(MLFLOW_WARNING)]

SERVER = container_of(STACK, "Deployment/mlflow")
SEARCH = SERVER["readinessProbe"]["httpGet"]["path"]
NAMES = ["mlflow", "mlflow.cnn-jobs", "mlflow.cnn-jobs.svc", "mlflow.cnn-jobs.svc.cluster.local"]
# Hosts used by pods, by a port-forward to any port, and by Prometheus.
HOSTS = [
    *NAMES,
    *(f"{name}:5000" for name in NAMES),
    "localhost:5000",
    "localhost:8080",
    "127.0.0.1:18080",
    "localhost",
]
HOSTS += [POD_IP, f"{POD_IP}:5000", f"[{POD_IP}]:5000"]
FOREIGN = [
    "evil.example",
    "evil.example:5000",
    "10.evil.example",
    "mlflow.evil.example",
    "10.244.3.18:5000",
    "mlflow:80",
]
HAS_EXPORTER = importlib.util.find_spec("prometheus_flask_exporter") is not None
needs_postgres = pytest.mark.skipif(not has_postgres(), reason="PostgreSQL or psycopg is not installed")


def test_the_bucket_is_created_once(bucket: list[str]) -> None:
    assert bucket == ["bucket cnn-jobs-of-the-stack created\n", "bucket cnn-jobs-of-the-stack exists\n"]


def test_the_init_container_waits_for_the_store(secret: dict[str, str], tmp_path: Path) -> None:
    from moto.server import ThreadedMotoServer

    first = container_of("k8s/overlays/in-cluster-store", "Deployment/mlflow", "initContainers")
    port = free_port()
    late = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    starts = threading.Timer(4.0, late.start)
    starts.start()
    try:
        given = {**secret, "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        given["MLFLOW_ARTIFACTS_DESTINATION"] = "s3://of-a-late-store/mlflow"
        began = time.monotonic()
        assert run_container(first, given, tmp_path) == "bucket of-a-late-store created\n"
        assert time.monotonic() - began > 3
    finally:
        starts.join()
        late.stop()


@pytest.mark.parametrize("host", HOSTS)
def test_allowed_hosts(server: Running, host: str) -> None:
    status, text = server.get(SEARCH, host)
    assert (status, '"name": "Default"' in text) == (200, True)


@pytest.mark.parametrize("host", FOREIGN)
def test_other_hosts_are_rejected(server: Running, host: str) -> None:
    assert server.get(SEARCH, host)[0] == 403
    assert server.get("/", host)[0] == 403


@pytest.mark.parametrize("kind", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes_as_the_kubelet_sends_them(server: Running, kind: str) -> None:
    request = SERVER[kind]["httpGet"]
    headers = {each["name"]: each["value"] for each in request.get("httpHeaders", [])}
    assert server.get(request["path"], headers.get("Host", f"{POD_IP}:5000"))[0] == 200


@pytest.mark.skipif(not HAS_EXPORTER, reason="prometheus-flask-exporter is not installed")
def test_prometheus_scrapes_by_the_address_of_the_pod(server: Running) -> None:
    assert server.get("/metrics", "evil.example")[0] == 403
    server.get(SEARCH, "mlflow:5000")
    status, text = server.get("/metrics", f"{POD_IP}:5000")
    assert (status, "mlflow_http_request_total" in text) == (200, True)


def test_no_command_line_contains_a_secret(server: Running, secret: dict[str, str]) -> None:
    lines = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            group = (folder / "stat").read_text().rpartition(")")[2].split()[3]  # session
            if int(group) == server.process.pid:
                lines.append((folder / "cmdline").read_bytes())
        except OSError:
            continue
    assert len(lines) >= 3  # the server and its two workers
    hidden = [PASSWORD, secret["MLFLOW_BACKEND_STORE_URI"], "the-secret", "s3://"]
    assert not [line for line in lines for word in hidden if word.encode() in line]
    assert PASSWORD not in server.log.read_text()


def test_nothing_is_written_outside_of_its_volume(server: Running) -> None:
    """Files open for writing are below the folder that replaces the emptyDir."""
    written = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) != server.process.pid:
                continue
            for link in (folder / "fd").iterdir():
                flags = int((folder / "fdinfo" / link.name).read_text().split("flags:")[1].split()[0], 8)
                if flags & 3 and link.readlink().is_absolute() and link.readlink().is_file():
                    written.add(link.readlink())
        except OSError:
            continue
    assert written
    # Without PostgreSQL it uses sqlite.
    assert {p for p in written if not p.is_relative_to(server.log.parent) and not p.match("*/mlflow.db*")} == set()


@needs_postgres
def test_connections_stay_within_the_manifests_calculation(server: Running, database: Database) -> None:
    counts = []
    count = "select count(*) from pg_stat_activity where usename = 'mlflow' and pid <> pg_backend_pid()"
    registry = "/api/2.0/mlflow/registered-models/search"
    with concurrent.futures.ThreadPoolExecutor(60) as pool, database.connect() as connection:
        calls = [pool.submit(server.get, path, "mlflow:5000") for _ in range(150) for path in (SEARCH, registry)]
        while not all(call.done() for call in calls):
            counts.append(connection.execute(count).fetchone()[0])
            time.sleep(0.05)
    assert {call.result()[0] for call in calls} == {200}
    # More than the pools of one worker keep: both were in use, and the limit was nearly reached.
    assert 10 < max(counts) <= 43


@needs_postgres
def test_without_its_database_it_is_alive_but_not_ready(server: Running, database: Database) -> None:
    probe = SERVER["readinessProbe"]
    assert server.get(probe["httpGet"]["path"], "mlflow:5000")[0] == 200
    database.stop()
    try:
        began = time.monotonic()
        assert server.get(probe["httpGet"]["path"], "mlflow:5000")[0] >= 500
        assert time.monotonic() - began < probe["timeoutSeconds"]
        assert server.get(SERVER["livenessProbe"]["httpGet"]["path"], "mlflow:5000")[0] == 200
    finally:
        database.start()
    assert server.get(probe["httpGet"]["path"], "mlflow:5000")[0] == 200


def test_files_go_to_the_bucket_and_gc_deletes_them_after_a_month(
    server: Running, secret: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    url = f"http://127.0.0.1:{server.port}"
    client = MlflowClient(url)
    experiment = client.get_experiment(client.create_experiment("gc"))
    assert experiment.artifact_location.startswith("mlflow-artifacts:/")
    run_id = client.create_run(experiment.experiment_id).info.run_id
    # Only the server has S3 keys.
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    (tmp_path / "model.bin").write_bytes(b"weights" * 1000)
    client.log_artifact(run_id, str(tmp_path / "model.bin"), "model")
    store = boto3.client(
        "s3",
        endpoint_url=secret["MLFLOW_S3_ENDPOINT_URL"],
        aws_access_key_id="the-key",
        aws_secret_access_key="the-secret",
        region_name="us-east-1",
    )
    key = f"mlflow/{experiment.experiment_id}/{run_id}/artifacts/model/model.bin"
    content = io.BytesIO()
    store.download_fileobj("cnn-jobs-of-the-stack", key, content)
    assert content.getvalue() == b"weights" * 1000

    client.delete_run(run_id)
    gc = container_of(STACK, "CronJob/mlflow-gc")
    assert gc["args"] == ["--older-than", "30d"]
    assert run_id not in run_container(gc, secret, tmp_path, MLFLOW_TRACKING_URI=url)
    assert client.get_run(run_id).info.lifecycle_stage == "deleted"
    time.sleep(1.1)
    assert run_id in run_container(gc, secret, tmp_path, "--older-than", "1s", MLFLOW_TRACKING_URI=url)
    assert "Contents" not in store.list_objects_v2(Bucket="cnn-jobs-of-the-stack", Prefix=key.rpartition("/")[0])
    assert run_id not in [
        found.info.run_id for found in client.search_runs([experiment.experiment_id], run_view_type=3)
    ]


def test_the_port_variable_of_a_service_ends_the_server(secret: dict[str, str], tmp_path: Path) -> None:
    """Why enableServiceLinks is false: Kubernetes would set this for a Service named mlflow."""
    given = {**environment(SERVER, secret, tmp_path), "MLFLOW_PORT": "tcp://10.96.0.7:5000"}
    words = [word for word in command(SERVER, given, tmp_path, host="127.0.0.1") if not word.startswith("--port=")]
    ran = subprocess.run(words, env=given, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 2
    assert "tcp://10.96.0.7:5000" in ran.stderr
