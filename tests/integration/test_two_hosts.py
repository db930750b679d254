"""Two processes on two hosts: network namespaces with a cable between them, and the names of pods."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cnn_jobs.data.prepared import write_prepared
from tests.helpers.datasets import striped_dataset
from tests.helpers.waiting import until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"),
        reason="network namespaces need root, ip and unshare",
    ),
]
SERVICE = "task2-ddp"
# 3 steps an epoch: long enough to be cut in its middle.
OPTIONS = ("--epochs", "400", "--batch-size", "12", "--early-stop-count", "0", "--threads", "1")
Start = Callable[[int], "subprocess.Popen[str]"]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two namespaces with a cable between them. Each resolves its own name as a pod, and rank 0 by the Service."""
    names = [f"cnn-jobs-{os.getpid()}-{number}" for number in (0, 1)]
    files = [Path("/etc/netns") / name for name in names]
    try:
        for number, (name, folder) in enumerate(zip(names, files, strict=True)):
            ip("netns", "add", name)
            folder.mkdir(parents=True)
            own = f"{SERVICE}-{number}.{SERVICE}.cnn-jobs.svc.cluster.local {SERVICE}-{number}"
            first = f"10.90.0.10 {SERVICE}-0.{SERVICE}"
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n10.90.0.1{number} {own}\n{first}\n")
        ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "name", "cable1", "netns", names[1])
        for number, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.90.0.1{number}/24", "dev", f"cable{number}")
            for device in ("lo", f"cable{number}"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name, folder in zip(names, files, strict=True):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start(hosts: list[str], mlflow_uri: str, tmp_path: Path) -> Iterator[Start]:
    """Starts the process of a rank on its host, as an Indexed Job would."""
    data = tmp_path / "data.npz"
    write_prepared(striped_dataset(), data, compressed=False)
    started: list[subprocess.Popen[str]] = []

    def begin(rank: int) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": mlflow_uri,
            "CNN_JOBS_STATE_DIR": str(tmp_path / f"state-{rank}"),
            "CNN_JOBS_JOB_UID": "two-hosts",
            "CNN_JOBS_WORLD_SIZE": "2",
            "JOB_COMPLETION_INDEX": str(rank),
            "MASTER_ADDR": f"{SERVICE}-0.{SERVICE}",
        }
        train = [sys.executable, "-m", "cnn_jobs", "train", "task2", "--data", str(data), *OPTIONS]
        named = ["unshare", "--uts", "sh", "-c", f'hostname {SERVICE}-{rank}; exec "$@"', "sh", *train]
        with (tmp_path / f"log-{rank}").open("w") as log:
            command = ["ip", "netns", "exec", hosts[rank], *named]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait(30)


def test_lost_connection_ends_both_and_both_resume(start: Start, hosts: list[str], tmp_path: Path) -> None:
    """The cable is pulled: no packet arrives, and no error."""
    logs = [tmp_path / f"log-{rank}" for rank in (0, 1)]
    # Rank 1 first: it waits for a host on which nothing listens yet.
    other, first = start(1), start(0)
    until(lambda: "step 60/" in logs[0].read_text(), 180)
    assert (first.poll(), other.poll()) == (None, None)
    ip("-n", hosts[1], "link", "set", "cable1", "down")
    # Both have to end within a minute.
    assert (first.wait(60), other.wait(60)) == (75, 75), [log.read_text() for log in logs]
    assert "lost rank 1: no status for 20 s" in logs[0].read_text()
    assert "lost rank 0: no status for 20 s" in logs[1].read_text()

    ip("-n", hosts[1], "link", "set", "cable1", "up")
    other, first = start(1), start(0)
    assert (first.wait(240), other.wait(60)) == (0, 0), [log.read_text() for log in logs]
    assert "task2-seed0: 1200 steps in" in logs[0].read_text()
