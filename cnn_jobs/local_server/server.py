"""Starting and stopping the server of a directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cnn_jobs.errors import TrackingError, from_os_error
from cnn_jobs.local_server import process as record
from cnn_jobs.local_server.process import HOST, ProcessId, Server, descendants, end, identify

PORTS_TRIED = 100


def is_free(port: int) -> bool:
    """Whether a server could listen on ``port`` of the loopback interface, and nothing answers there yet."""
    # macOS lets one bind 127.0.0.1:5000 while its AirPlay receiver answers on every interface: ask first.
    with socket.socket() as asking:
        asking.settimeout(1)
        if asking.connect_ex((HOST, port)) == 0:
            return False
    with socket.socket() as binding:
        # As the server does it; without, a port counts as taken for a minute after its last connection.
        binding.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            binding.bind((HOST, port))
            return True
    return False


def free_port(first: int, say: Callable[[str], None]) -> int:
    """``first`` or the next free port after it; any free one for 0. Raises TrackingError if there is none."""
    if first == 0:
        with socket.socket() as any_port:
            any_port.bind((HOST, 0))
            return int(any_port.getsockname()[1])
    last = min(first + PORTS_TRIED - 1, 65535)
    for port in range(first, last + 1):
        if is_free(port):
            if port != first:
                say(f"port {first} is taken; using {port}")
            return port
    raise TrackingError(f"no port from {first} to {last} is free; choose another one with --port")


READY_TIMEOUT_S = 90.0  # 5 to 22 s were measured on two cores
ATTEMPTS = 3
Say = Callable[[str], None]


def _quiet(_: str) -> None:
    pass


def start_server(directory: Path, port: int = 0, *, say: Say = _quiet, timeout_s: float = READY_TIMEOUT_S) -> Server:
    """The server of ``directory``, started if none runs; it answers on return, and outlives the caller.

    ``port`` is the first one tried, 0 any free one. Raises TrackingError if the server ends or stays silent
    for ``timeout_s``, StateDirError if ``directory`` cannot be written.
    """
    directory = directory.resolve()
    with _locked(directory, say):
        server = record.read(directory)
        if server is not None and server.is_alive():
            say(f"reusing the MLflow server at {server.url} (pid {server.pid})")
            return _wait_until_ready(server, directory, timeout_s)
        if server is not None:
            say(f"the MLflow server with pid {server.pid} is gone; starting a new one")
            _end(server, directory)
        return _start_new(directory, port, say, timeout_s)


def stop_server(directory: Path, *, say: Say = _quiet) -> bool:
    """Ends the server of ``directory`` and its workers, and nothing else; False if none ran."""
    directory = directory.resolve()
    server = None
    if directory.is_dir():
        with _locked(directory, say):
            server = record.read(directory)
            ran = server is not None and any(process.is_alive() for process in server.processes)
            killed = _end(server, directory) if server is not None else []
    if server is None or not ran:
        say(f"no MLflow server runs in {directory}")
        return False
    how = f"; {len(killed)} of its processes by SIGKILL" if killed else ""
    say(f"stopped the MLflow server at {server.url} (pid {server.pid}{how})")
    return True


def _start_new(directory: Path, port: int, say: Say, timeout_s: float) -> Server:
    for _ in range(ATTEMPTS):
        server = _launch(directory, free_port(port, say))
        say(f"starting MLflow at {server.url} (pid {server.pid}, log {directory / 'server.log'})")
        try:
            return _wait_until_ready(server, directory, timeout_s)
        except TrackingError:
            _end(server, directory)
            # Another program may take the port while MLflow loads: then the next port will do.
            if is_free(server.port):
                raise
        except BaseException:
            _end(server, directory)
            raise
    raise TrackingError(f"a port was taken by another program {ATTEMPTS} times; choose another one with --port")


def _launch(directory: Path, port: int) -> Server:
    # MLflow's own variables would make it another server (MLFLOW_PORT, MLFLOW_BACKEND_STORE_URI, ...).
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # Its job queue is eight more processes of 240 MB each, for features that nothing here uses.
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        HOST,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += ["--backend-store-uri", f"sqlite:///{directory / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(directory / "artifacts")]
    try:
        with (directory / "server.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it lives on when the terminal closes
            )
    except OSError as error:
        raise from_os_error(error, directory / "server.log") from error
    # For a moment after exec, Linux shows a process without its arguments.
    while not ((identity := identify(process.pid)) and identity.command) and process.poll() is None:
        time.sleep(0.01)
    identity = identity or ProcessId(process.pid, 0.0, ())
    # From here on server.json answers for it: without this line, Popen would warn that it outlives us.
    process.returncode = 0
    server = Server(f"http://{HOST}:{port}", port, (identity,))
    record.write(server, directory)
    return server


def _wait_until_ready(server: Server, directory: Path, timeout_s: float) -> Server:
    deadline = time.monotonic() + timeout_s
    while not server.answers():
        if not server.is_alive():
            raise TrackingError(f"the MLflow server ended while it started; {_end_of_log(directory)}")
        if time.monotonic() > deadline:
            raise TrackingError(
                f"the MLflow server (pid {server.pid}) did not answer within {timeout_s:.0f} s; "
                f"'make local-stop' ends it; {_end_of_log(directory)}"
            )
        time.sleep(0.2)
    # With its workers, so that they can be ended even after their parent was killed.
    main = server.processes[0]
    workers = [found for child in descendants(main) if (found := identify(child.pid))]
    server = Server(server.url, server.port, (main, *workers))
    record.write(server, directory)
    return server


def _end(server: Server, directory: Path) -> list[ProcessId]:
    alive = server.is_alive()
    killed = end(server.processes)
    if alive:
        # Once more for a worker that was just being started: all are in the group of the first process.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, signal.SIGKILL)
    record.remove(directory)
    return killed


def _end_of_log(directory: Path) -> str:
    path = directory / "server.log"
    try:
        lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return f"{path} ends with: {' | '.join(line[:200] for line in lines[-3:]) or 'nothing'}"


@contextlib.contextmanager
def _locked(directory: Path, say: Say) -> Iterator[None]:
    """One start or stop at a time; the lock goes with the process that holds it."""
    path = directory / "server.lock"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise from_os_error(error, path) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another start or stop is under way here; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
