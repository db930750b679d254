"""The MLflow server of a directory: start it, find it, stop it.

The directory holds the database, the artifacts, ``server.log`` and ``server.json``, which identifies the server.
MLflow itself is not imported, since that takes seconds: HTTP and processes are enough.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cnn_jobs.errors import TrackingError, from_os_error
from cnn_jobs.local_server.process import ProcessId, end, identify
from cnn_jobs.system.files import make_folder, write_text

HOST = "127.0.0.1"
PORTS_TRIED = 100
READY_TIMEOUT_S = 90.0  # 5 to 22 s were measured on two cores
ATTEMPTS = 3
Notify = Callable[[str], object]


@dataclass(frozen=True)
class Server:
    """A server that was started here: its address and its processes, first ``mlflow server``, then its workers."""

    url: str
    port: int
    processes: tuple[ProcessId, ...]

    @property
    def pid(self) -> int:
        """The pid of ``mlflow server``."""
        return self.processes[0].pid

    def is_alive(self) -> bool:
        """Whether ``mlflow server`` runs."""
        return self.processes[0].is_alive()

    def answers(self, timeout_s: float = 10.0) -> bool:
        """Whether this server, and no other program on its port, answers a request that needs its database.

        MLflow's ``/health`` answers "OK" without its database.
        """
        if not any(process.listens_on(self.port) for process in self.processes[0].family()):
            return False
        with contextlib.closing(http.client.HTTPConnection(HOST, self.port, timeout=timeout_s)) as connection:
            try:
                connection.request("GET", "/api/2.0/mlflow/experiments/search?max_results=1")
                return connection.getresponse().status == http.client.OK
            except (OSError, http.client.HTTPException):
                return False


def _ignore(_: str) -> None:
    pass


def start_server(
    directory: Path, port: int = 0, *, notify: Notify = _ignore, timeout_s: float = READY_TIMEOUT_S
) -> Server:
    """The server of ``directory``, started if none runs. It answers on return, and outlives this process.

    ``port`` is the first one tried, 0 any free one. Raises TrackingError if the server ends or does not answer within
    ``timeout_s``, StateDirError if ``directory`` is not writable.
    """
    directory = directory.resolve()
    with _locked(directory, notify):
        server = read_record(directory)
        if server is not None and server.is_alive():
            notify(f"reusing the MLflow server at {server.url} (pid {server.pid})")
            return _wait_until_ready(server, directory, timeout_s)
        if server is not None:
            notify(f"the MLflow server with pid {server.pid} is gone; starting a new one")
            _end(server, directory)
        return _start_new(directory, port, notify, timeout_s)


def running_server(directory: Path) -> Server | None:
    """The server of ``directory``, if it runs."""
    server = read_record(directory)
    return server if server is not None and server.is_alive() else None


def stop_server(directory: Path, *, notify: Notify = _ignore) -> bool:
    """Ends the server of ``directory`` and its workers, and nothing else; ``False`` if none ran."""
    directory = directory.resolve()
    server = None
    if directory.is_dir():
        with _locked(directory, notify):
            server = read_record(directory)
            ran = server is not None and any(process.is_alive() for process in server.processes)
            killed = _end(server, directory) if server is not None else []
    if server is None or not ran:
        notify(f"no MLflow server runs in {directory}")
        return False
    how = f"; {len(killed)} of its processes by SIGKILL" if killed else ""
    notify(f"stopped the MLflow server at {server.url} (pid {server.pid}{how})")
    return True


def read_record(directory: Path) -> Server | None:
    """The server recorded in ``directory``, which may be gone; ``None`` for a missing or damaged record."""
    try:
        record = json.loads((directory / "server.json").read_text())
        processes = tuple(ProcessId(p["pid"], p["started_s"], tuple(p["command"])) for p in record["processes"])
        return Server(record["url"], record["port"], processes) if processes else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(server: Server, directory: Path) -> None:
    """Records the server in ``directory``, atomically."""
    write_text(directory / "server.json", json.dumps(asdict(server), indent=2))


def free_port(first: int = 0, notify: Notify = _ignore) -> int:
    """``first`` or the next free port after it; any free one for 0. Raises TrackingError if there is none."""
    if first == 0:
        with socket.create_server((HOST, 0)) as any_port:
            return int(any_port.getsockname()[1])
    last = min(first + PORTS_TRIED - 1, 65535)
    for port in range(first, last + 1):
        if is_free(port):
            if port != first:
                notify(f"port {first} is taken; using {port}")
            return port
    raise TrackingError(f"no port from {first} to {last} is free; choose another one with --port")


def is_free(port: int) -> bool:
    """Whether a server could listen on ``port`` of the loopback interface, and none answers there."""
    # On macOS 127.0.0.1:5000 can be bound although the AirPlay receiver answers on all interfaces: connect first.
    with socket.socket() as client:
        client.settimeout(1)
        if client.connect_ex((HOST, port)) == 0:
            return False
    # With SO_REUSEADDR, as in the server: otherwise a port is taken for a minute after its last connection.
    try:
        socket.create_server((HOST, port)).close()
    except OSError:
        return False
    return True


def _start_new(directory: Path, port: int, notify: Notify, timeout_s: float) -> Server:
    for _ in range(ATTEMPTS):
        server = _launch(directory, free_port(port, notify))
        notify(f"starting MLflow at {server.url} (pid {server.pid}, log {directory / 'server.log'})")
        try:
            return _wait_until_ready(server, directory, timeout_s)
        except TrackingError:
            _end(server, directory)
            # If another program took the port while MLflow was loading, try the next port.
            if is_free(server.port):
                raise
        except BaseException:
            _end(server, directory)
            raise
    raise TrackingError(f"a port was taken by another program {ATTEMPTS} times; choose another one with --port")


def _launch(directory: Path, port: int) -> Server:
    # MLflow's variables would change the server (MLFLOW_PORT, MLFLOW_BACKEND_STORE_URI, ...).
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # The job queue is eight more processes of 240 MB each, for features that are not used here.
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    command = [sys.executable, *("-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1")]
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
                start_new_session=True,  # survives the terminal
            )
    except OSError as error:
        raise from_os_error(error, directory / "server.log") from error
    # For a moment after exec, Linux shows a process without its arguments.
    while not ((identity := identify(process.pid)) and identity.command) and process.poll() is None:
        time.sleep(0.01)
    # server.json is responsible for the process now; this suppresses Popen's warning that it still runs.
    process.returncode = 0
    server = Server(f"http://{HOST}:{port}", port, (identity or ProcessId(process.pid, 0.0, ()),))
    write_record(server, directory)
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
    # The record includes the workers, so that they can be ended even if their parent was killed.
    main, *workers = server.processes[0].family()
    server = replace(server, processes=(main, *(found for each in workers if (found := identify(each.pid)))))
    write_record(server, directory)
    return server


def _end(server: Server, directory: Path) -> list[ProcessId]:
    """Ends all processes of the server; returns those that needed SIGKILL."""
    alive = server.is_alive()
    killed = end(server.processes)
    if alive:
        # Once more, for a worker that was being started: it is in the process group of the server.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, signal.SIGKILL)
    (directory / "server.json").unlink(missing_ok=True)
    return killed


def _end_of_log(directory: Path) -> str:
    path = directory / "server.log"
    try:
        lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return f"{path} ends with: {' | '.join(line[:200] for line in lines[-3:]) or 'nothing'}"


@contextlib.contextmanager
def _locked(directory: Path, notify: Notify) -> Iterator[None]:
    """One start or stop at a time; the system releases the lock when the process ends."""
    path = make_folder(directory) / "server.lock"
    try:
        lock = path.open("w")
    except OSError as error:
        raise from_os_error(error, path) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify("another start or stop is in progress here; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
