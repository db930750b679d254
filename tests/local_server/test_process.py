from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from cnn_jobs.local_server.process import ProcessId, end, identify

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(SLEEP) as process:
        yield process
        process.kill()


def identity_of(process: subprocess.Popen[bytes]) -> ProcessId:
    identity = identify(process.pid)
    assert identity is not None
    return identity


def test_a_process_is_alive_until_it_ends(sleeper: subprocess.Popen[bytes]) -> None:
    identity = identity_of(sleeper)
    assert identity.is_alive()
    sleeper.kill()
    while psutil.Process(sleeper.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert not identity.is_alive()  # a zombie


def test_a_recycled_pid_is_another_process(sleeper: subprocess.Popen[bytes]) -> None:
    now = identity_of(sleeper)
    assert not ProcessId(now.pid, now.started_s - 100, now.command).is_alive()
    assert not ProcessId(now.pid, now.started_s, ("-m", "mlflow", "server")).is_alive()


def test_end_includes_descendants() -> None:
    spawner = f"import subprocess; subprocess.run({SLEEP!r})"
    with subprocess.Popen([sys.executable, "-c", spawner]) as process:
        while not (below := psutil.Process(process.pid).children()):
            time.sleep(0.01)
        assert end([identity_of(process)]) == []
        assert identify(below[0].pid) is None
    assert identify(process.pid) is None


def test_end_kills_a_process_that_ignores_sigterm() -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        identity = identity_of(process)
        assert end([identity], grace_s=0.3) == [identity]
        assert not identity.is_alive()
