"""The status of each process of a distributed run, where the others read it: on a TCPStore that rank 0 serves.

Only the thread of this module talks to the store. A store whose machine vanished never answers; then this thread waits,
the main thread does not, and the time since the last status shows what happened.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from cnn_jobs.distributed.world import World
from cnn_jobs.errors import one_line

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

TICK_S = 0.5
RETRY_S = 0.5
# Timeout of one connection to rank 0, whose name may still resolve to a pod that is gone.
CONNECT_S = 3.0
STORE_TIMEOUT = timedelta(seconds=10)


@dataclass
class Entry:
    """The last status of another process, and when (monotonic) it last changed."""

    content: dict[str, Any]
    heard: float


class StatusStore:
    """Publishes this process' status and reads others into ``entries``: rank 0 reads all, the others read rank 0's.

    ``fields``, called at each tick in the store's thread, adds to the status. ``failure``: why the store is out of
    reach for good; ``obstacle``: why it is not yet reached.
    """

    def __init__(self, world: World, fields: Callable[[], Mapping[str, Any]] = dict) -> None:
        self.entries: dict[int, Entry] = {}
        self.failure = self.obstacle = ""
        self.store: Store | None = None
        self._world, self._fields = world, fields
        self._watched = range(1, world.size) if world.rank == 0 else range(1)
        self._own: dict[str, Any] = {}
        self._beat = 0
        self._lock, self._changed, self._closing = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)

    def start(self) -> None:
        """Starts to look for the others."""
        self._thread.start()

    def publish(self, **fields: Any) -> None:
        """Updates this process' status; the others see it within ``TICK_S``."""
        with self._lock:
            self._own.update(fields)
        self._changed.set()

    def close(self, timeout_s: float = 2.0) -> None:
        """Publishes the last status and stops, within ``timeout_s``."""
        self._closing.set()
        self._changed.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self.store = self._connect()
            while self.store:
                closing = self._closing.is_set()
                self._exchange(self.store)
                if closing:
                    return
                self._changed.wait(TICK_S)
                self._changed.clear()
        except Exception as error:  # reported in the main thread, whatever it is
            self.failure = one_line(error)

    def _exchange(self, store: Store) -> None:
        self._beat += 1
        fields = self._fields()
        with self._lock:
            line = json.dumps({**self._own, **fields, "beat": self._beat})
        store.set(f"line/{self._world.rank}", line)
        for rank in self._watched:
            key = f"line/{rank}"
            if not store.check([key]):
                continue
            content = json.loads(store.get(key))
            known = self.entries.get(rank)
            if known is None or known.content["beat"] != content["beat"]:
                self.entries[rank] = Entry(content, time.monotonic())

    # -- connecting ------------------------------------------------------------------------------------------------

    def _connect(self) -> Store | None:
        """The store, as soon as it can be reached and this rank is free in it; ``None`` after ``close``."""
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        world = self._world
        while not self._closing.is_set():
            try:
                serves = world.rank == 0 and not world.agent_store
                store = PrefixStore(f"cnn-jobs/{world.restart}", self._serve() if serves else self._reach())
                # It may be the store of an attempt that is about to end, with this rank's previous process in it.
                if store.add(f"seat/{world.rank}", 1) == 1:
                    return store
                self.obstacle = f"another process is rank {world.rank} there"
                del store
            except (OSError, RuntimeError) as error:  # torch raises RuntimeError for errors of the store
                self.obstacle = one_line(error)
            self._closing.wait(RETRY_S)
        return None

    def _serve(self) -> Store:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        listener = listen(self._world.address, self._world.port)
        # By address: in a pod that has just started its own name may not resolve yet.
        return TCPStore(
            "127.0.0.1",
            self._world.port,
            None,
            True,
            timeout=STORE_TIMEOUT,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )

    def _reach(self) -> Store:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        world = self._world
        # TCPStore itself would wait for a name that does not resolve yet, with a warning each second.
        socket.create_connection((world.address, world.port), CONNECT_S).close()
        return TCPStore(world.address, world.port, None, False, timeout=STORE_TIMEOUT, wait_for_workers=False)


def listen(address: str, port: int) -> socket.socket:
    """A listening socket: on loopback where ``address`` is that, else on all interfaces. Raises ``OSError``."""
    try:
        if is_loopback(address):
            return socket.create_server(("127.0.0.1", port))
        if socket.has_dualstack_ipv6():
            with contextlib.suppress(OSError):
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OSError(f"port {port} is in use here; set MASTER_PORT to a free one for all processes") from error
        raise


def is_loopback(address: str) -> bool:
    """Whether the name leads to this machine, by an address that no other machine reaches."""
    try:
        return socket.gethostbyname(address).startswith("127.")
    except OSError:
        return address == "::1"


def bind_gloo_to_loopback(address: str) -> None:
    """Makes gloo listen on loopback only, where all processes are on this machine; the user's own setting wins."""
    names = {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}
    if is_loopback(address) and names:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", names.pop())
