"""What downloads by other packages need around them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT_S = 30.0


@contextmanager
def with_timeout(seconds: float = TIMEOUT_S) -> Iterator[None]:
    """A network that swallows packets ends the wait: torchvision and torch.hub pass no timeout to urllib."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
