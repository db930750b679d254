"""``server.json``: which processes serve a directory, and where."""

from __future__ import annotations

import contextlib
import http.client
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cnn_jobs.files import write_text
from cnn_jobs.local_server.processes import ProcessId, descendants, listens_on

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
