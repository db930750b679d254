"""The store's socket: where it listens."""

from __future__ import annotations

import pytest

from cnn_jobs.distributed.status_store import is_loopback, listen


def test_loopback_stays_loopback() -> None:
    assert is_loopback("localhost")
    assert not is_loopback("192.0.2.1")
    assert not is_loopback("name.invalid")
    with listen("localhost", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_a_port_in_use_is_one_clear_line() -> None:
    with listen("localhost", 0) as listener, pytest.raises(OSError, match=r"port \d+ is in use here; set MASTER_PORT"):
        listen("localhost", listener.getsockname()[1])
