"""A pod's network as the policies of the stack leave it: a network namespace in which there is MLflow and nothing else.

The namespace has a loopback of its own and no way out. A socket belongs to the namespace that made it, whoever holds
it: one that listens inside is handed out, and what comes in there is passed on to the server outside. Its name is in
the pod's own /etc/hosts. The kernel keeps the pod from everything else, whatever the program in it does.
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

# argv: number of the socket to hand out by, port, hosts file. Ends when its stdin does.
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
    """Why no such network can be made here, "" where it can."""
    if not all(map(shutil.which, ("unshare", "nsenter", "mount"))):
        return "unshare, nsenter or mount is not installed"
    ran = subprocess.run([*_unshare(), "true"], capture_output=True, text=True, check=False)
    return "" if ran.returncode == 0 else f"this user may make no network namespace: {ran.stderr.strip()}"


def _unshare() -> list[str]:
    """For root, or for another user where the kernel lets everybody make namespaces."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--net", "--mount"]


class PodNetwork:
    """``words``: what a command line begins with that runs in this network. ``sent``: bytes that came out of it."""

    def __init__(self, holder: int, inside: socket.socket, upstream: tuple[str, int]) -> None:
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        # A mount namespace is entered at its root; --wd stays where the program was started.
        self.words = ["nsenter", f"--target={holder}", *user, "--net", "--mount", "--wd=.", "--"]
        self.inside, self._upstream = inside, upstream
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it was closed
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
    """In it, ``name``:``port`` is ``upstream`` of this machine. Gone with the block."""
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
