"""SIGTERM to commands that have nothing to save, as the first process of a container: without a handler the kernel
ignores the signal there."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.waiting import until

# docs/reliability.md
LONGEST_STOP_S = 10.0
COMMANDS = {
    "report": ["report", "--out", "out"],
    "reap": ["reap"],
    "interpret": ["interpret", "task4b", "--weights", "none", "--out", "out"],
    "arithmetic": ["arithmetic", "--log"],
    "doctor": ["doctor", "--data", "shapes"],
    "stage": ["data", "stage", "--no-imagenet", "--cifar10-from", "http://{address}/cifar-10-python.tar.gz"],
    "stage weights": ["data", "stage", "--no-cifar10", "--imagenet-from", "http://{address}/resnet18.pth"],
    "verify": ["data", "verify", "s3://bucket/data.npz"],
}


def can_unshare() -> bool:
    """Whether this user may create a process namespace."""
    try:
        return subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(not can_unshare(), reason="may not create a process namespace"),
]


@contextlib.contextmanager
def silent_server() -> Iterator[tuple[str, threading.Event]]:
    """``host:port`` of a server that accepts connections and never answers, and whether there was one."""
    connected = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as connections:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connections.enter_context(server.accept()[0])
                    connected.set()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", connected
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_stops_at_once_with_a_message(name: str, tmp_path: Path) -> None:
    with silent_server() as (address, connected):
        arguments = [each.format(address=address) for each in COMMANDS[name]]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "MLFLOW_TRACKING_URI": f"http://{address}",
            "AWS_ENDPOINT_URL": f"http://{address}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
            "KUBERNETES_SERVICE_HOST": "10.96.0.1",
            "CNN_JOBS_STATE_DIR": str(tmp_path / "state"),
            "CNN_JOBS_CACHE_DIR": str(tmp_path / "cache"),
            "TORCH_HOME": str(tmp_path / "torch"),
        }
        command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-m", "cnn_jobs", *arguments]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
        try:
            assert connected.wait(120), (tmp_path / "log").read_text()
            first = int(until(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text))
            began = time.monotonic()
            os.kill(first, signal.SIGTERM)
            assert process.wait(60) == 1, (tmp_path / "log").read_text()
            assert time.monotonic() - began < LONGEST_STOP_S
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    assert "stopped by SIGTERM" in (tmp_path / "log").read_text()
