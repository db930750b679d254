from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cnn_jobs.errors import StateDirError, TrackingError
from cnn_jobs.local_server.process import ProcessId, identify
from cnn_jobs.local_server.server import (
    Server,
    free_port,
    is_free,
    read_record,
    running_server,
    start_server,
    stop_server,
    write_record,
)
from tests.helpers.waiting import until

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def command_line(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cnn_jobs.local_server", *arguments, "--dir", str(directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def status_of(server: Server) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
        connection.request("GET", "/api/2.0/mlflow/experiments/search?max_results=1")
        return connection.getresponse().status


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that belongs to no server."""
    with subprocess.Popen(SLEEP) as process:
        yield process
        process.kill()


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which another program listens."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory for a server, with a space in its name; the server is stopped after the test."""
    path = tmp_path / "local server"
    yield path
    stop_server(path)


def identity_of(process: subprocess.Popen[bytes]) -> ProcessId:
    identity = identify(process.pid)
    assert identity is not None
    return identity


def test_a_taken_port_is_not_free(taken: int) -> None:
    assert not is_free(taken)
    messages: list[str] = []
    assert free_port(taken, messages.append) > taken
    assert messages[0].startswith(f"port {taken} is taken; using ")


def test_any_free_port() -> None:
    assert is_free(free_port())


def test_no_free_port(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    monkeypatch.setattr("cnn_jobs.local_server.server.PORTS_TRIED", 1)
    with pytest.raises(TrackingError, match=f"no port from {taken} to {taken} is free"):
        free_port(taken)


def fake_record(directory: Path, *processes: ProcessId) -> None:
    directory.mkdir(exist_ok=True)
    write_record(Server("http://127.0.0.1:1", 1, processes), directory)


def test_a_record_is_read_as_written(tmp_path: Path) -> None:
    server = Server("http://127.0.0.1:5000", 5000, (ProcessId(1, 2.5, ("-m", "mlflow")), ProcessId(3, 4.5, ())))
    write_record(server, tmp_path)
    assert read_record(tmp_path) == server
    assert [path.name for path in tmp_path.iterdir()] == ["server.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"url": "x"}', '{"url": "x", "port": 1, "processes": []}'])
def test_a_damaged_record_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "server.json").write_text(text)
    assert read_record(tmp_path) is None
    assert running_server(tmp_path) is None
    assert not stop_server(tmp_path)


def test_stop_spares_a_recycled_pid(directory: Path, sleeper: subprocess.Popen[bytes]) -> None:
    now = identity_of(sleeper)
    fake_record(directory, ProcessId(now.pid, now.started_s - 100, now.command))
    messages: list[str] = []
    assert not stop_server(directory, notify=messages.append)
    assert messages == [f"no MLflow server runs in {directory}"]
    assert sleeper.poll() is None
    assert read_record(directory) is None


def test_stop_ends_a_worker_whose_parent_was_killed(directory: Path) -> None:
    with subprocess.Popen(SLEEP) as worker:
        fake_record(directory, ProcessId(2**22 + 1, 1.0, ()), identity_of(worker))
        assert running_server(directory) is None
        assert stop_server(directory)
    assert identify(worker.pid) is None


def test_stop_without_a_server(tmp_path: Path) -> None:
    done = command_line("stop", directory=tmp_path / "none")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"no MLflow server runs in {tmp_path / 'none'}\n"
    assert not (tmp_path / "none").exists()


def test_status_and_url_without_a_server(tmp_path: Path) -> None:
    assert command_line("status", directory=tmp_path).stdout == f"no MLflow server runs in {tmp_path}\n"
    done = command_line("url", directory=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "make local-run" in done.stderr


def test_start_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateDirError, match="cannot be written"):
        start_server(tmp_path / "file")


# With a stub in place of MLflow, which starts in seconds: failures of the server.


@pytest.fixture
def broken_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that ``python -m mlflow`` runs."""
    (tmp_path / "modules").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    return tmp_path / "modules" / "mlflow.py"


def test_a_server_that_exits_is_reported_with_the_end_of_its_log(directory: Path, broken_mlflow: Path) -> None:
    broken_mlflow.write_text("print('first'); raise SystemExit('the database is\\n\\nbroken')")
    done = command_line("start", "--port", "0", directory=directory)
    assert done.returncode == 1
    assert done.stderr == (
        "error: the MLflow server ended while it started; "
        f"{directory / 'server.log'} ends with: first | the database is | broken\n"
    )
    assert read_record(directory) is None


def test_a_server_that_does_not_answer_is_ended(directory: Path, broken_mlflow: Path) -> None:
    broken_mlflow.write_text("import time; time.sleep(60)")
    messages: list[str] = []
    with pytest.raises(TrackingError, match="did not answer within 1 s"):
        start_server(directory, notify=messages.append, timeout_s=1)
    pid = int(messages[0].split("(pid ")[1].split(",")[0])
    until(lambda: identify(pid) is None, 10)
    assert read_record(directory) is None


# Listens after a delay, as MLflow does, and exits if the port is taken, as uvicorn does.
SLOW_SERVER = """
import http.server, sys, time
time.sleep(float(open({delay!r}).read()))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def test_answers_of_another_program_on_the_port_do_not_count(
    tmp_path: Path, directory: Path, broken_mlflow: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    (tmp_path / "delay").write_text("0")
    broken_mlflow.write_text(SLOW_SERVER.format(delay=str(tmp_path / "delay")))
    server = start_server(directory)
    assert server.answers()
    assert not Server(server.url, server.port, (identity_of(sleeper),)).answers()


def test_a_port_taken_during_the_start_is_replaced(tmp_path: Path, directory: Path, broken_mlflow: Path) -> None:
    (tmp_path / "delay").write_text("1.5")
    broken_mlflow.write_text(SLOW_SERVER.format(delay=str(tmp_path / "delay")))
    thieves: list[socket.socket] = []

    def steal(message: str) -> None:
        if message.startswith("starting") and not thieves:
            port = int(message.split(":")[2].split(" ")[0])
            thieves.append(socket.create_server(("127.0.0.1", port)))

    try:
        server = start_server(directory, free_port(), notify=steal)
        assert server.port != thieves[0].getsockname()[1]
        assert server.answers()
    finally:
        for thief in thieves:
            thief.close()


def test_two_simultaneous_starts_create_one_server(tmp_path: Path, directory: Path, broken_mlflow: Path) -> None:
    (tmp_path / "delay").write_text("1")
    broken_mlflow.write_text(SLOW_SERVER.format(delay=str(tmp_path / "delay")))
    command = [sys.executable, "-m", "cnn_jobs.local_server", "start", "--port", "0", "--dir", str(directory)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    output = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("reusing" in text for text in output) == [False, True]
    assert sum("another start or stop is in progress" in text for text in output) == 1


def test_mlflow_variables_of_the_user_do_not_reach_the_server(
    directory: Path, broken_mlflow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_mlflow.write_text("import json, os; raise SystemExit(json.dumps(dict(os.environ)))")
    monkeypatch.setenv("MLFLOW_PORT", "tcp://10.0.0.1:5000")
    with pytest.raises(TrackingError):
        start_server(directory)
    environment = json.loads((directory / "server.log").read_text())
    assert "MLFLOW_PORT" not in environment
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"


# With MLflow itself


@pytest.mark.integration
@pytest.mark.slow
def test_the_life_cycle_of_a_server(directory: Path, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing listens there: it must not be used
    started = command_line("start", "--port", str(taken), directory=directory)
    assert started.returncode == 0, started.stderr
    assert f"port {taken} is taken" in started.stdout
    server = running_server(directory)
    assert server is not None
    assert server.port != taken
    assert status_of(server) == http.client.OK
    assert len(server.processes) >= 2  # with its worker
    assert os.getsid(server.pid) == server.pid  # a closing terminal does not end it
    assert command_line("url", directory=directory).stdout == f"{server.url}\n"
    assert "answers" in command_line("status", directory=directory).stdout

    again = command_line("start", directory=directory)
    assert again.returncode == 0, again.stderr
    assert f"reusing the MLflow server at {server.url} (pid {server.pid})" in again.stdout

    stopped = command_line("stop", directory=directory)
    assert stopped.stdout == f"stopped the MLflow server at {server.url} (pid {server.pid})\n"
    assert not any(process.is_alive() for process in server.processes)
    assert is_free(server.port)
    assert command_line("stop", directory=directory).returncode == 0


@pytest.mark.integration
@pytest.mark.slow
def test_a_killed_server_is_replaced_and_leaves_no_worker(directory: Path, sleeper: subprocess.Popen[bytes]) -> None:
    first = start_server(directory)
    os.kill(first.pid, signal.SIGKILL)
    os.waitpid(first.pid, 0)
    assert first.processes[1].is_alive()  # the worker still runs, and holds the port
    second = start_server(directory, first.port)
    assert not first.processes[1].is_alive()
    assert (second.port, status_of(second)) == (first.port, http.client.OK)
    assert stop_server(directory)
    assert sleeper.poll() is None


@pytest.mark.integration
@pytest.mark.slow
def test_a_damaged_database(directory: Path) -> None:
    directory.mkdir()
    (directory / "mlflow.db").write_bytes(b"this is no database" * 1000)
    done = command_line("start", "--port", "0", directory=directory)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "file is not a database" in done.stderr
