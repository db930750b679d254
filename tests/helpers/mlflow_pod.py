"""Containers of the stack as local processes, with their command, arguments and environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from tests.helpers.kustomize import Object, build, expand, pods

POD_IP = "10.244.3.17"
READY_S = 120.0
BIN = Path(sys.executable).parent


def environment(container: Object, secret: dict[str, str], home: Path) -> dict[str, str]:
    """The environment that the kubelet sets, with ``home`` for /tmp, and PATH of this machine."""
    made = {"PATH": f"{BIN}:{os.environ['PATH']}", "TMPDIR": str(home)}
    for each in container["env"]:
        source = each.get("valueFrom", {})
        if reference := source.get("secretKeyRef"):
            if reference["key"] in secret:
                made[each["name"]] = secret[reference["key"]]
            else:
                assert reference.get("optional"), f"the pod would not start without {reference['key']}"
        elif source:
            made[each["name"]] = {"status.podIP": POD_IP, "metadata.namespace": "cnn-jobs"}[
                source["fieldRef"]["fieldPath"]
            ]
        else:
            made[each["name"]] = each["value"].replace("/tmp", str(home))
    return made


def command(container: Object, given: dict[str, str], home: Path, **replaced: str) -> list[str]:
    """Command and arguments, expanded; ``replaced``: options with another value on this machine."""
    found = [
        expand(word, given).replace("/tmp", str(home)) for word in [*container["command"], *container.get("args", [])]
    ]
    for name, value in replaced.items():
        (place,) = (number for number, word in enumerate(found) if word.startswith(f"--{name}="))
        found[place] = f"--{name}={value}"
    return found


def container_of(folder: str, owner: str, kind: str = "containers") -> Object:
    """The only container of an object, or its only init container."""
    (pod,) = (pod for pod in pods(build(folder)) if pod.owner == owner)
    found: list[Object] = pod.spec[kind]
    (container,) = found
    return container


def run_container(container: Object, secret: dict[str, str], home: Path, *arguments: str, **env: str) -> str:
    """Runs a container to its end; returns its output. ``arguments`` replace its own, if given."""
    given = {**environment(container, secret, home), **env}
    words = command(container, given, home)
    if arguments:
        words = [*words[: len(container["command"])], *arguments]
    ran = subprocess.run(words, env=given, cwd=home, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@dataclass(frozen=True)
class Running:
    """A running server on loopback."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def get(self, path: str, host: str, method: str = "GET") -> tuple[int, str]:
        """Status and body of the response to a request with this Host header."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True)
            connection.putheader("Host", host)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


@contextmanager
def serve(words: list[str], given: dict[str, str], port: int, home: Path) -> Iterator[Running]:
    """Runs a server during the block; it answers /health at the beginning."""
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
