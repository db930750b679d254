"""A PostgreSQL on loopback, for tests that want the database which the stack has."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from cnn_jobs.local_server.server import free_port


class Database:
    """A PostgreSQL of its own on loopback with role and database 'mlflow', that can go and come back."""

    def __init__(self, password: str) -> None:
        # As root it refuses to run, and it may not look into pytest's own folders.
        self.user: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        self.home = Path(tempfile.mkdtemp(prefix="cnn-jobs-postgres-"))
        self.port, self.password = free_port(), password
        secret = self.home / "password"
        secret.write_text(password)
        if self.user:
            for path in (self.home, secret):
                os.chown(path, 65534, 65534)
        words = [program("initdb"), "-D", str(self.home / "data"), "-U", "mlflow", "-A", "scram-sha-256"]
        words.append(f"--pwfile={secret}")
        subprocess.run(words, check=True, capture_output=True, cwd=self.home, **self.user)
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
            self.process = subprocess.Popen(words, stdout=log, stderr=log, cwd=self.home, **self.user)
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


def has_postgres() -> bool:
    """Whether there is one here, and the driver that the server's image has."""
    return bool(program("initdb")) and importlib.util.find_spec("psycopg") is not None
