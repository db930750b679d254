"""The store of statuses: where it listens, and who may use it."""

from __future__ import annotations

import pytest

from cnn_jobs.distributed import status_store
from cnn_jobs.distributed.status_store import StatusStore, is_loopback, listen
from cnn_jobs.distributed.world import World
from cnn_jobs.local_server.server import free_port
from tests.helpers.waiting import until


def test_loopback_is_not_left() -> None:
    assert is_loopback("localhost")
    assert not is_loopback("192.0.2.1")
    assert not is_loopback("name.invalid")
    with listen("localhost", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_port_in_use_is_a_one_line_error() -> None:
    with listen("localhost", 0) as listener, pytest.raises(OSError, match=r"port \d+ is in use here; set MASTER_PORT"):
        listen("localhost", listener.getsockname()[1])


def test_rank_of_another_process_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_store, "RETRY_S", 0.05)
    port = free_port()
    root, worker, second = (StatusStore(World(size=2, rank=rank, port=port)) for rank in (0, 1, 1))
    for each in (root, worker):
        each.start()
        until(lambda each=each: each.store)
    second.start()
    until(lambda: "another process is rank 1 there" in second.obstacle)
    assert second.store is None
    for each in (second, worker, root):
        each.close()
