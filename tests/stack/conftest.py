"""The stack's MLflow server, with a database and a bucket, as local processes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from cnn_jobs.local_server.server import free_port
from tests.helpers.kustomize import STACK
from tests.helpers.mlflow_pod import Running, command, container_of, environment, run_container, serve
from tests.helpers.postgres_server import PASSWORD, Database, has_postgres


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    made = Database(PASSWORD)
    yield made
    made.remove()


@pytest.fixture(scope="module")
def secret(
    moto_server: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, str]:
    """The user's Secret, with a database and an S3 server on this machine."""
    folder = tmp_path_factory.mktemp(PASSWORD)
    sqlite = f"sqlite:///{folder}/mlflow.db"
    return {
        "MLFLOW_BACKEND_STORE_URI": request.getfixturevalue("database").uri if has_postgres() else sqlite,
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://cnn-jobs-of-the-stack/mlflow",
        "MLFLOW_S3_ENDPOINT_URL": moto_server,
        "AWS_ACCESS_KEY_ID": "the-key",
        "AWS_SECRET_ACCESS_KEY": "the-secret",
    }


@pytest.fixture(scope="module")
def bucket(secret: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Output of the overlay's init container, which creates the bucket, run twice."""
    first = container_of("k8s/overlays/in-cluster-store", "Deployment/mlflow", "initContainers")
    return [run_container(first, secret, tmp_path_factory.mktemp("bucket")) for _ in range(2)]


@pytest.fixture(scope="module")
def server(secret: dict[str, str], bucket: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The Deployment's container, on another port and address."""
    home, port = tmp_path_factory.mktemp("mlflow"), free_port()
    container = container_of(STACK, "Deployment/mlflow")
    given = environment(container, secret, home)
    words = command(container, given, home, host="127.0.0.1", port=str(port))
    if importlib.util.find_spec("prometheus_flask_exporter") is None:
        words = [word for word in words if not word.startswith("--expose-prometheus=")]
    with serve(words, given, port, home) as running:
        yield running
