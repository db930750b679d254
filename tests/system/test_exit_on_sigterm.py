"""SIGTERM to every command that has nothing to save: as the first process of a container, which ignores what it has no
handler for."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.waiting import until

# docs/reliability.md: less than 10 s.
PROMPT_S = 10.0
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
    """Whether this user may make a namespace of processes."""
    try:
        return subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@contextlib.contextmanager
def silence() -> Iterator[tuple[str, threading.Event]]:
    """The address of a server that takes connections and never says a word, and whether somebody has called."""
    called = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as open_ones:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    open_ones.enter_context(server.accept()[0])
                    called.set()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", called
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.mark.slow
@pytest.mark.skipif(not can_unshare(), reason="needs the right to make a namespace of processes")
@pytest.mark.parametrize("name", COMMANDS)
def test_as_the_first_process_a_command_ends_at_once_and_says_why(name: str, tmp_path: Path) -> None:
    with silence() as (address, called):
        argv = [each.format(address=address) for each in COMMANDS[name]]
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
        words = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-m", "cnn_jobs", *argv]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(words, env=environment, cwd=tmp_path, stdout=log, stderr=log)
        try:
            assert called.wait(120), (tmp_path / "log").read_text()
            first = int(until(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text))
            began = time.monotonic()
            os.kill(first, signal.SIGTERM)
            assert process.wait(60) == 1, (tmp_path / "log").read_text()
            assert time.monotonic() - began < PROMPT_S
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    assert "stopped by SIGTERM" in (tmp_path / "log").read_text()


def run(body: str, tmp_path: Path) -> tuple[int, str, float]:
    """Exit code, output and seconds after a SIGTERM of a program that says 'ready'."""
    script = "import time\nfrom cnn_jobs.system.signals import exit_on_sigterm\n" + textwrap.dedent(body)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output, time.monotonic() - began


def test_no_library_takes_it_for_an_error_of_its_own_and_what_was_begun_is_put_away(tmp_path: Path) -> None:
    body = """
    exit_on_sigterm()
    try:
        try:
            print("ready", flush=True)
            time.sleep(60)
        except Exception as error:
            print("swallowed", error)
    finally:
        print("put away", flush=True)
    """
    assert run(body, tmp_path)[:2] == (1, "put away\n")


def test_what_waits_for_ever_is_ended_by_the_clock(tmp_path: Path) -> None:
    body = """
    exit_on_sigterm(0.5)
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        time.sleep(60)
        print("never said", flush=True)
    """
    code, output, took = run(body, tmp_path)
    assert (code, output) == (1, "")
    assert 0.4 < took < 20


def test_a_second_signal_does_not_break_what_the_first_began(tmp_path: Path) -> None:
    body = """
    import os, signal
    exit_on_sigterm()
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        print("put away", flush=True)
    """
    assert run(body, tmp_path)[:2] == (1, "put away\n")
