"""Settings and fixtures of all tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.data.sources import default_cache_dir
from tests.helpers.datasets import cifar10_archive, striped_dataset
from tests.helpers.disks import mounted_disk
from tests.helpers.tracking import MLFLOW_WARNING

# No deadline: on a busy machine any example may be slow. The same examples each time: a failure can be repeated.
settings.register_profile("cnn-jobs", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("cnn-jobs")


def pytest_configure() -> None:
    """A process that a shell starts in the background (``make test &``) ignores SIGINT, one below ``nohup`` SIGHUP, and
    their children inherit that: restores the defaults, for the tests that send one."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "mlflow_template_db" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings(MLFLOW_WARNING))


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolates the test from the machine's settings, and the machine's caches from the test."""
    for name in list(os.environ):
        if name.startswith(("CNN_JOBS_", "MLFLOW_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CNN_JOBS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CNN_JOBS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One torch thread: on small tensors more are slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_dataset() -> Dataset:
    """40 training and 12 test images of 3x16x16 in three classes that are easy to learn."""
    return striped_dataset()


@pytest.fixture
def small_file(tmp_path: Path, tiny_dataset: Dataset) -> Path:
    """``tiny_dataset`` as a file."""
    path = tmp_path / "small.npz"
    write_prepared(tiny_dataset, path, compressed=False)
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a file system of 64 KiB."""
    with mounted_disk(tmp_path / "disk", "64k") as folder:
        yield folder


@pytest.fixture(scope="session")
def mlflow_template_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: creating one takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("mlflow")
    path = folder / "mlflow.db"
    script = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).search_experiments()"
    # In a process of its own, so that the file is closed afterwards; MLflow's default artifact folder is ./mlruns.
    command = [sys.executable, "-c", script, f"sqlite:///{path}"]
    subprocess.run(command, cwd=folder, check=True, timeout=120, capture_output=True)
    return path


@pytest.fixture
def mlflow_uri(mlflow_template_db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new MLflow database; the test runs in ``tmp_path``, where artifacts go to ./mlruns."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(mlflow_template_db, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(scope="session")
def resnet18_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in place of ImageNet's: the same keys and shapes, and BatchNorm statistics that are not the
    initial ones."""
    import torch
    from torchvision.models import resnet18

    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = resnet18().train()
        with torch.no_grad():
            network(torch.randn(4, 3, 64, 64))
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def moto_server() -> Iterator[str]:
    """The URL of an S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Isolates boto3 from the machine's settings, with keys of its own."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name == "MLFLOW_S3_ENDPOINT_URL":
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def bucket(moto_server: str, aws: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an empty bucket on the server that AWS_ENDPOINT_URL names."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_server)
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture
def cache_dir() -> Path:
    """The cache of this test."""
    return default_cache_dir()


@pytest.fixture
def archive(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's archive in the cache."""
    return cifar10_archive(cache_dir, monkeypatch)
