"""A PostgreSQL server on loopback, as in the stack."""

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

PASSWORD = "0123456789abcdef-of-a-test"


class Database:
    """A PostgreSQL server with role and database 'mlflow', which can be stopped and started again."""

    def __init__(self, password: str) -> None:
        # It refuses to run as root, and another user cannot read pytest's folders.
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
        """Its URI, as in the Secret."""
        return f"postgresql+psycopg://mlflow:{self.password}@127.0.0.1:{self.port}/mlflow"

    def start(self) -> None:
        """Starts it; returns when it accepts connections."""
        words = [program("postgres"), "-D", str(self.home / "data"), "-p", str(self.port), "-k", str(self.home)]
        words += ["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=100"]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, cwd=self.home, **self.user)
        self.connect("postgres").close()

    def stop(self) -> None:
        """Stops it, disconnecting all clients."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)

    def connect(self, name: str = "mlflow") -> Any:
        """A connection, after waiting for the server."""
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
        """Stops it and deletes its data."""
        self.stop()
        shutil.rmtree(self.home)


def program(name: str) -> str:
    """Path of a program of PostgreSQL, "" if it is missing."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *map(str, places)])) or ""


def has_postgres() -> bool:
    """Whether PostgreSQL and the driver of the server's image are installed."""
    return bool(program("initdb")) and importlib.util.find_spec("psycopg") is not None
