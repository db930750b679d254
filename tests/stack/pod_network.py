"""A pod's network under the stack's policies: a network namespace in which only MLflow can be reached.

The namespace has only a loopback interface. A socket belongs to the namespace that created it, whoever holds it: a
listening socket is passed out, and its connections are forwarded to the server outside. The pod's own /etc/hosts has
its name. The kernel blocks everything else, whatever the program does.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# argv: descriptor of the socket that passes the listening one out, port, hosts file. Ends with its stdin.
HOLDER = """
import fcntl, socket, struct, subprocess, sys
probe = socket.socket()
fcntl.ioctl(probe, 0x8914, struct.pack("16sH14s", b"lo", 0x1 | 0x40, b""))  # SIOCSIFFLAGS: IFF_UP | IFF_RUNNING
subprocess.run(["mount", "--bind", sys.argv[3], "/etc/hosts"], check=True)
inside = socket.create_server(("127.0.0.1", int(sys.argv[2])), backlog=64)
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"listening"], [inside.fileno()])
sys.stdin.read()
"""


@functools.cache
def why_not() -> str:
    """Why no such network can be created on this machine, "" if it can."""
    if not all(map(shutil.which, ("unshare", "nsenter", "mount"))):
        return "unshare, nsenter or mount is not installed"
    ran = subprocess.run([*_unshare(), "true"], capture_output=True, text=True, check=False)
    return "" if ran.returncode == 0 else f"this user may not create network namespaces: {ran.stderr.strip()}"


def _unshare() -> list[str]:
    """For root, and for other users if the kernel allows them to create namespaces."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--net", "--mount"]


class PodNetwork:
    """``words``: prefix of a command line that runs in this network."""

    def __init__(self, holder: int, inside: socket.socket, upstream: tuple[str, int]) -> None:
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        # --wd keeps the working directory: a mount namespace is entered at its root.
        self.words = ["nsenter", f"--target={holder}", *user, "--net", "--mount", "--wd=.", "--"]
        self.inside, self._upstream = inside, upstream
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                caller, _ = self.inside.accept()
                threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        with caller, contextlib.suppress(OSError), socket.create_connection(self._upstream) as server:
            back = threading.Thread(target=_copy, args=(server, caller), daemon=True)
            back.start()
            _copy(caller, server)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def pod_network(folder: Path, name: str, port: int, upstream: tuple[str, int]) -> Iterator[PodNetwork]:
    """A network for the block, in which ``name``:``port`` is ``upstream`` of this machine."""
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n127.0.0.1 {name}\n")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        words = [*_unshare(), sys.executable, "-c", HOLDER, str(theirs.fileno()), str(port), str(hosts)]
        holder = subprocess.Popen(words, stdin=subprocess.PIPE, pass_fds=[theirs.fileno()])
        assert holder.stdin
        try:
            ours.settimeout(30)
            _, (number,), _, _ = socket.recv_fds(ours, 16, 1)
            with socket.socket(fileno=number) as inside:
                inside.setblocking(True)
                try:
                    yield PodNetwork(holder.pid, inside, upstream)
                finally:
                    inside.shutdown(socket.SHUT_RDWR)  # ends accept
        finally:
            holder.stdin.close()
            holder.wait(30)
