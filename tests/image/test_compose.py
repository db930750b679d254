"""mlflow/compose.yaml: its schema, its agreement with the stack on Kubernetes, and its running server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from cnn_jobs.local_server.server import free_port
from tests.helpers.kustomize import STACK, build, pods
from tests.helpers.mlflow_pod import Running, container_of, serve
from tests.helpers.postgres_server import Database, has_postgres
from tests.helpers.tracking import MLFLOW_WARNING
from tests.image.compose_file import FILE, Service, environment, interpolate, passwords, services
from tests.image.locks import ROOT

STORE = "k8s/overlays/in-cluster-store"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return passwords(tmp_path_factory.mktemp("passwords"))


@pytest.fixture(scope="module")
def found(generated: dict[str, str]) -> dict[str, Service]:
    return services(generated)


def check_jsonschema(path: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "check-jsonschema"
    words = [program, "--builtin-schema", "vendor.compose-spec", path]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def test_it_is_valid(tmp_path: Path) -> None:
    ran = check_jsonschema(FILE)
    assert ran.returncode == 0, ran.stdout
    (tmp_path / "compose.yaml").write_text(FILE.read_text().replace("cap_drop:", "cap_drops:"))
    assert check_jsonschema(tmp_path / "compose.yaml").returncode == 1


def test_without_passwords_the_error_names_the_command(generated: dict[str, str]) -> None:
    for name in generated:
        with pytest.raises(KeyError, match=f"{name}: generate the passwords first with make mlflow/.env"):
            interpolate(FILE.read_text(), {**generated, name: ""})
    # No password has a default.
    assert re.findall(r"\$\{(\w+):-", FILE.read_text()) == ["MLFLOW_HOST_PORT"]
    assert set(re.findall(r"\$\{?(\w+)", FILE.read_text())) == {*generated, "MLFLOW_HOST_PORT"}


def test_passwords_are_generated_once_private_and_ignored_by_git(tmp_path: Path) -> None:
    first = passwords(tmp_path)
    assert (tmp_path / "mlflow/.env").stat().st_mode & 0o777 == 0o600
    assert passwords(tmp_path) == first
    (tmp_path / "mlflow/.env").unlink()
    second = passwords(tmp_path)
    assert {name for name in first if first[name] == second[name]} == set()
    # Safe in a URL, whatever the value.
    assert all(re.fullmatch(r"[0-9a-f]{20,}", value) for value in first.values())
    ignored = subprocess.run(["git", "check-ignore", "-q", "mlflow/.env"], cwd=ROOT)
    assert ignored.returncode == 0


def test_no_password_is_on_a_command_line(found: dict[str, Service], generated: dict[str, str]) -> None:
    for name, service in found.items():
        words = [
            *service.get("entrypoint", []),
            *service.get("command", []),
            *service.get("healthcheck", {"test": []})["test"],
        ]
        assert not [word for word in words for value in generated.values() if value in word], name


def test_only_mlflow_has_a_port_on_loopback(found: dict[str, Service]) -> None:
    assert {name: each["ports"] for name, each in found.items() if "ports" in each} == {
        "mlflow": ["127.0.0.1:5000:5000"]
    }


def test_services_are_hardened_and_have_healthchecks(found: dict[str, Service]) -> None:
    for name, service in found.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert re.fullmatch(r".+/.+:[0-9.]+|cnn-jobs-mlflow:[0-9.]+-\d+", service["image"]), name
    assert {name for name, each in found.items() if "healthcheck" in each} == {"postgres", "store", "mlflow"}
    assert found["mlflow"]["depends_on"] == {
        "postgres": {"condition": "service_healthy"},
        "bucket": {"condition": "service_completed_successfully"},
    }
    assert found["bucket"]["depends_on"] == {"store": {"condition": "service_healthy"}}


OWNERS = {
    "postgres": (STACK, "StatefulSet/postgres"),
    "store": (STORE, "StatefulSet/store"),
    "bucket": (STORE, "Deployment/mlflow", "initContainers"),
    "mlflow": (STACK, "Deployment/mlflow"),
}


@pytest.mark.parametrize("name", OWNERS)
def test_services_equal_the_containers_of_the_stack(found: dict[str, Service], name: str) -> None:
    service, container = found[name], container_of(*OWNERS[name])
    assert service["image"].removeprefix("docker.io/").removeprefix("library/") == container["image"]
    words = [*service.get("entrypoint", []), *service.get("command", [])]
    expected = [*container.get("command", []), *container.get("args", [])]
    hosts = "--allowed-hosts="
    assert [w for w in words if not w.startswith(hosts)] == [w for w in expected if not w.startswith(hosts)]
    named = {each["name"] for each in container["env"]}
    # The addresses of a pod and of an Ingress; the region of a bucket elsewhere.
    assert named - set(service["environment"]) <= {"POD_IP", "POD_NAMESPACE", "INGRESS_HOSTS", "AWS_DEFAULT_REGION"}
    assert set(service["environment"]) - named <= {"HOME"}
    for each in container["env"]:
        if "value" in each and each["name"] in service["environment"]:
            assert service["environment"][each["name"]] == each["value"], each["name"]


def test_settings_equal_the_documented_secret(found: dict[str, Service]) -> None:
    page = (ROOT / "docs/kubernetes-stack.md").read_text()
    for name in ("MLFLOW_ARTIFACTS_DESTINATION", "MLFLOW_S3_ENDPOINT_URL"):
        assert f"{name}={found['mlflow']['environment'][name]}\n" in page
    uri = found["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    form = re.search(r"MLFLOW_BACKEND_STORE_URI=(\S+)", page)
    assert form
    assert re.fullmatch(re.escape(form[1]).replace(r"\$password", "[0-9a-f]+"), uri)


def test_users_equal_those_of_the_stack(found: dict[str, Service]) -> None:
    for name in ("postgres", "store"):
        folder, owner = OWNERS[name][:2]
        (pod,) = (pod for pod in pods(build(folder)) if pod.owner == owner)
        context = pod.spec["securityContext"]
        assert found[name]["user"] == f"{context['runAsUser']}:{context['runAsGroup']}"


needs_postgres = pytest.mark.skipif(not has_postgres(), reason="PostgreSQL or psycopg is not installed")


@pytest.fixture(scope="module")
def database(generated: dict[str, str]) -> Iterator[Database]:
    made = Database(generated["POSTGRES_PASSWORD"])
    yield made
    made.remove()


@pytest.fixture(scope="module")
def server(
    found: dict[str, Service], database: Database, moto_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """The server of the file, after its bucket is created, with local addresses."""
    bucket, mlflow = found["bucket"], found["mlflow"]
    made = environment(bucket, tmp_path_factory.mktemp("bucket"), MLFLOW_S3_ENDPOINT_URL=moto_server)
    subprocess.run(bucket["entrypoint"], env=made, check=True, capture_output=True, timeout=60)
    home, port = tmp_path_factory.mktemp("mlflow"), free_port()
    uri = mlflow["environment"]["MLFLOW_BACKEND_STORE_URI"].replace("@postgres:5432/", f"@127.0.0.1:{database.port}/")
    given = environment(mlflow, home, MLFLOW_S3_ENDPOINT_URL=moto_server, MLFLOW_BACKEND_STORE_URI=uri)
    replaced = {"--host=0.0.0.0": "--host=127.0.0.1", "--port=5000": f"--port={port}"}
    words = [
        replaced.get(word, word).replace("/tmp", str(home)) for word in [*mlflow["entrypoint"], *mlflow["command"]]
    ]
    with serve(words, given, port, home) as running:
        yield running


def health(service: Service, port: int) -> int:
    """The exit code of the service's healthcheck, with another port."""
    kind, *words = service["healthcheck"]["test"]
    assert kind == "CMD"
    words = [word.replace(":5000/", f":{port}/") for word in words]
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(words, env=env, capture_output=True, timeout=60).returncode


@needs_postgres
@pytest.mark.integration
@pytest.mark.filterwarnings(MLFLOW_WARNING)
class TestServer:
    def test_allowed_hosts(self, server: Running) -> None:
        path = "/api/2.0/mlflow/experiments/search?max_results=1"
        for host in ("localhost:5000", "127.0.0.1:5001", "mlflow:5000"):
            assert server.get(path, host)[0] == 200, host
        for host in ("evil.example", "10.evil.example:5000", "postgres:5000"):
            assert server.get(path, host)[0] == 403, host

    def test_artifacts_go_through_it_to_the_bucket(
        self, server: Running, moto_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow import MlflowClient

        monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
        client = MlflowClient(f"http://127.0.0.1:{server.port}")
        run = client.create_run(client.create_experiment("compose")).info
        (tmp_path / "back").mkdir()
        (tmp_path / "weights").write_bytes(b"w" * 1000)
        client.log_artifact(run.run_id, str(tmp_path / "weights"), "model")
        back = Path(client.download_artifacts(run.run_id, "model/weights", str(tmp_path / "back")))
        assert back.read_bytes() == b"w" * 1000
        keys = boto3.client(
            "s3", endpoint_url=moto_server, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        ).list_objects_v2(Bucket="cnn-jobs")["Contents"]
        assert [each["Key"] for each in keys if each["Key"].endswith(f"/{run.run_id}/artifacts/model/weights")]

    def test_its_healthcheck_needs_the_database(
        self, server: Running, database: Database, found: dict[str, Service]
    ) -> None:
        assert health(found["mlflow"], server.port) == 0
        database.stop()
        try:
            assert server.get("/health", "localhost")[0] == 200
            assert health(found["mlflow"], server.port) != 0
        finally:
            database.start()
        assert health(found["mlflow"], server.port) == 0

    def test_the_healthcheck_of_postgres(self, found: dict[str, Service], database: Database, server: Running) -> None:
        _, program, *options = found["postgres"]["healthcheck"]["test"]
        words = [program, *options, f"--port={database.port}"]
        assert subprocess.run(words, capture_output=True).returncode == 0
        assert subprocess.run([*words[:-1], f"--port={free_port()}"], capture_output=True).returncode != 0
