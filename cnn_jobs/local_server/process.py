"""Processes known by more than their number, so that a recycled pid is never taken for its predecessor."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from cnn_jobs.system.files import write_text

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Server:
    """A server that was started here: where it answers, and its processes, ``mlflow server`` itself first."""

    url: str
    port: int
    processes: tuple[ProcessId, ...]

    @property
    def pid(self) -> int:
        """The pid of ``mlflow server``; its workers are below it."""
        return self.processes[0].pid

    def is_alive(self) -> bool:
        """Whether ``mlflow server`` itself runs."""
        return self.processes[0].is_alive()

    def answers(self, timeout_s: float = 10.0) -> bool:
        """Whether this server, and no other program on its port, answers a question that needs its database.

        MLflow's ``/health`` says "OK" without looking at the database.
        """
        main = self.processes[0]
        if not any(listens_on(process, self.port) for process in (main, *descendants(main))):
            return False
        with contextlib.closing(http.client.HTTPConnection(HOST, self.port, timeout=timeout_s)) as connection:
            try:
                connection.request("GET", "/api/2.0/mlflow/experiments/search?max_results=1")
                return connection.getresponse().status == http.client.OK
            except (OSError, http.client.HTTPException):
                return False


def running_server(directory: Path) -> Server | None:
    """The server of ``directory``, if its process runs."""
    server = read(directory)
    return server if server is not None and server.is_alive() else None


def read(directory: Path) -> Server | None:
    """The record in ``directory``, of a server that may be gone; one that cannot be read counts as none."""
    try:
        record = json.loads((directory / "server.json").read_text())
        processes = [ProcessId(p["pid"], p["started_s"], tuple(p["command"])) for p in record["processes"]]
        return Server(record["url"], record["port"], tuple(processes)) if processes else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(server: Server, directory: Path) -> None:
    """Puts the record into ``directory``, whole or not at all."""
    write_text(directory / "server.json", json.dumps(asdict(server), indent=2))


def remove(directory: Path) -> None:
    """Takes the record away, if there is one."""
    (directory / "server.json").unlink(missing_ok=True)


# psutil reads the boot time in whole seconds, and two readings of it may differ by one (Linux: `btime`).
START_TOLERANCE_S = 2.0


@dataclass(frozen=True)
class ProcessId:
    """One process: its pid, when it started in seconds after boot, and its arguments (none: not compared).

    Seconds after boot, and not the time of day: that is set while processes run (NTP, a laptop waking up).
    The arguments tell apart two that started equally long after two boots.
    """

    pid: int
    started_s: float
    command: tuple[str, ...]

    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        now = identify(self.pid)
        if now is None or self.command not in ((), now.command):
            return False
        return abs(now.started_s - self.started_s) < START_TOLERANCE_S


def identify(pid: int) -> ProcessId | None:
    """The process that has ``pid`` now; ``None`` if there is none, or not one that we may look at."""
    try:
        process = psutil.Process(pid)
        # Without the program's own path: a framework build of Python on macOS changes it while it starts.
        command = tuple(process.cmdline()[1:])
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return ProcessId(pid, process.create_time() - psutil.boot_time(), command)
    except psutil.Error:
        return None


def descendants(process: ProcessId) -> list[ProcessId]:
    """Every process below ``process``, without arguments: one just forked still shows those of its parent."""
    if not process.is_alive():
        return []
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return []
    return [replace(found, command=()) for child in below if (found := identify(child.pid))]


def listens_on(process: ProcessId, port: int) -> bool:
    """Whether ``process`` accepts TCP connections on ``port``."""
    try:
        connections = psutil.Process(process.pid).net_connections("tcp")
    except psutil.Error:
        return False
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)


def end(processes: Iterable[ProcessId], grace_s: float = 10.0) -> list[ProcessId]:
    """SIGTERM to ``processes`` and all below them, SIGKILL after ``grace_s``; returns those left for it."""
    family = {one.pid: one for process in processes for one in (process, *descendants(process))}
    rest = _signal(family.values(), signal.SIGTERM, grace_s)
    _signal(rest, signal.SIGKILL, grace_s)
    return rest


def _signal(processes: Iterable[ProcessId], number: signal.Signals, wait_s: float) -> list[ProcessId]:
    """Sends one signal to the living among ``processes``; returns those that still live after ``wait_s``."""
    living = _still_alive(list(processes))
    for process in living:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)
    deadline = time.monotonic() + wait_s
    while (living := _still_alive(living)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return living


def _still_alive(processes: Sequence[ProcessId]) -> list[ProcessId]:
    for process in processes:
        # One that we started ourselves stays a zombie until it is waited for.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
    return [process for process in processes if process.is_alive()]
