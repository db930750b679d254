"""Free TCP ports of this machine."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from cnn_jobs.errors import TrackingError
from cnn_jobs.local_server.record import HOST

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
