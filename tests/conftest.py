"""What tests of all parts share."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from cnn_jobs.data.dataset import Dataset

# No deadline: on a busy machine any example may be slow. The same examples each time: a failure can be repeated.
settings.register_profile("cnn-jobs", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("cnn-jobs")

# MLflow 3.17 on SQLAlchemy 2.1: not ours to change, and only for tests that open such a database themselves.
MLFLOW_WARNING = "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"


def pytest_configure() -> None:
    """What a shell starts in the background (``make test &``) ignores Ctrl-C, and so would every process that a test
    starts and sends a SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "mlflow_uri" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings(MLFLOW_WARNING))


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test, and nothing a test leaves behind reaches the machine."""
    for name in list(os.environ):
        if name.startswith(("CNN_JOBS_", "MLFLOW_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CNN_JOBS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CNN_JOBS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One torch thread: on tensors this small more of them only get in each other's way."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def until(question: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true answer."""
    end = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
    return answer


def striped_dataset(*, train: int = 40, test: int = 12, size: int = 16, seed: int = 0) -> Dataset:
    """Three classes that a small network tells apart at once: a bright band, left, middle or right, in noise."""
    random = np.random.default_rng(seed)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 3
        images = random.integers(0, 80, (count, 3, size, size), dtype=np.uint8)
        band = size // 3
        for image, label in zip(images, labels, strict=True):
            image[:, :, label * band : (label + 1) * band] += 150
        return images, labels

    return Dataset.from_arrays(
        name="stripes", uri="stripes", classes=("left", "middle", "right"), train=split(train), test=split(test)
    )


@pytest.fixture(scope="session")
def tiny_dataset() -> Dataset:
    """40 training and 12 test pictures of 3x16x16 in three classes that are easy to learn."""
    return striped_dataset()


@pytest.fixture(scope="session")
def mlflow_template_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh MLflow database; making one takes seconds, so it is made once and copied."""
    folder = tmp_path_factory.mktemp("mlflow")
    path = folder / "mlflow.db"
    script = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).search_experiments()"
    # In a process of its own, which surely has closed the file when it ends; in its own folder, for MLflow's default
    # artifact folder is ./mlruns.
    command = [sys.executable, "-c", script, f"sqlite:///{path}"]
    subprocess.run(command, cwd=folder, check=True, timeout=120, capture_output=True)
    return path


@pytest.fixture
def mlflow_uri(mlflow_template_db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An MLflow database of this test alone; the test runs in ``tmp_path``, where its artifacts go to ./mlruns."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(mlflow_template_db, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(scope="session")
def resnet18_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands for ImageNet's weights, which cannot be had here: the same keys and shapes, statistics of BatchNorm that
    are not the initial ones."""
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
    """The URL of a real HTTP server that speaks S3."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of the machine reach boto3; the keys are ours."""
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
