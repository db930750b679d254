"""Containers of the stack as processes of this machine: same command, arguments and environment."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.stack.manifests import Object, expand

POD_IP = "10.244.3.17"
READY_S = 120.0
BIN = Path(sys.executable).parent


def environment(container: Object, secret: dict[str, str], home: Path) -> dict[str, str]:
    """What the kubelet would set, /tmp replaced by ``home``; nothing of this machine but PATH."""
    made = {"PATH": f"{BIN}:{os.environ['PATH']}", "TMPDIR": str(home)}
    for each in container["env"]:
        source = each.get("valueFrom", {})
        if reference := source.get("secretKeyRef"):
            if reference["key"] in secret:
                made[each["name"]] = secret[reference["key"]]
            else:
                assert reference.get("optional"), f"the pod would not start without {reference['key']}"
        elif source:
            assert source["fieldRef"]["fieldPath"] == "status.podIP"
            made[each["name"]] = POD_IP
        else:
            made[each["name"]] = each["value"].replace("/tmp", str(home))
    return made


def command(container: Object, given: dict[str, str], home: Path, **replaced: str) -> list[str]:
    """Command and arguments, expanded; ``replaced``: options that this machine needs otherwise."""
    found = [
        expand(word, given).replace("/tmp", str(home)) for word in [*container["command"], *container.get("args", [])]
    ]
    for name, value in replaced.items():
        (place,) = (number for number, word in enumerate(found) if word.startswith(f"--{name}="))
        found[place] = f"--{name}={value}"
    return found


@dataclass(frozen=True)
class Running:
    """A server that answers on loopback."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def get(self, path: str, host: str, method: str = "GET") -> tuple[int, str]:
        """Status and text of an answer to a request with this Host header."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True)
            connection.putheader("Host", host)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


def free_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def serve(words: list[str], given: dict[str, str], port: int, home: Path) -> Iterator[Running]:
    """Runs a server until the end of the block; it answers /health when the block begins."""
    log = home / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            words, env=given, cwd=home, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    running = Running(process, port, log)
    try:
        deadline = time.monotonic() + READY_S
        while not _answers(running):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


def _answers(running: Running) -> bool:
    try:
        return running.get("/health", "localhost")[0] == 200
    except OSError:
        return False


class Database:
    """A PostgreSQL of its own on loopback with role and database 'mlflow', that can go and come back."""

    def __init__(self, password: str) -> None:
        # As root it refuses to run, and it may not look into pytest's own folders.
        self.user = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        self.home = Path(tempfile.mkdtemp(prefix="cnn-jobs-postgres-"))
        self.port, self.password = free_port(), password
        secret = self.home / "password"
        secret.write_text(password)
        if self.user:
            for path in (self.home, secret):
                os.chown(path, 65534, 65534)
        words = [program("initdb"), "-D", str(self.home / "data"), "-U", "mlflow", "-A", "scram-sha-256"]
        subprocess.run([*words, f"--pwfile={secret}"], check=True, capture_output=True, cwd=self.home, **self.user)  # type: ignore[call-overload]
        self.start()
        with self.connect("postgres") as connection:
            connection.execute("create database mlflow")

    @property
    def uri(self) -> str:
        """As the Secret has it."""
        return f"postgresql+psycopg://mlflow:{self.password}@127.0.0.1:{self.port}/mlflow"

    def start(self) -> None:
        """Returns when it takes connections."""
        words = [program("postgres"), "-D", str(self.home / "data"), "-p", str(self.port), "-k", str(self.home)]
        words += ["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=100"]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, cwd=self.home, **self.user)  # type: ignore[call-overload]
        self.connect("postgres").close()

    def stop(self) -> None:
        """Clients are sent away."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)

    def connect(self, name: str = "mlflow") -> Any:
        """A connection, waited for."""
        import psycopg

        deadline = time.monotonic() + 60
        where = f"postgresql://mlflow:{self.password}@127.0.0.1:{self.port}/{name}"
        while True:
            try:
                return psycopg.connect(where, autocommit=True)
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self.home / "log").read_text()
                time.sleep(0.2)

    def remove(self) -> None:
        """With its data."""
        self.stop()
        shutil.rmtree(self.home)


def program(name: str) -> str:
    """Where a program of PostgreSQL is, "" for nowhere."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *map(str, places)])) or ""
