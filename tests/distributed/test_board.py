"""Boards of several ranks in one process, on a real store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cnn_jobs.distributed import rendezvous as peers_module
from cnn_jobs.distributed import status_store as board_module
from cnn_jobs.distributed.rendezvous import Company
from cnn_jobs.distributed.status_store import StatusStore, is_loopback, listen
from cnn_jobs.distributed.world import World
from cnn_jobs.errors import DivergedError, InterruptedRunError, PeerLostError, RendezvousError, UserError
from cnn_jobs.local_server.server import free_port
from cnn_jobs.system.signals import StopRequest
from tests.conftest import until


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "TICK_S", 0.05)
    monkeypatch.setattr(board_module, "RETRY_S", 0.05)
    monkeypatch.setattr(peers_module, "SILENT_S", 1.0)
    monkeypatch.setattr(peers_module, "FAREWELL_S", 0.5)


def world(rank: int, port: int, timeout_s: float = 20.0) -> World:
    return World(size=2, rank=rank, address="127.0.0.1", port=port, timeout_s=timeout_s)


@pytest.fixture
def both() -> Iterator[list[Company]]:
    port = free_port()
    companies = [Company(world(rank, port), StopRequest()) for rank in (0, 1)]
    for each in companies:
        each.board.start()
    until(lambda: all(each.board.store for each in companies))
    yield companies
    for each in reversed(companies):
        each.board.close()


def test_what_one_says_the_other_reads(both: list[Company]) -> None:
    both[0].board.publish(go={"threads": 3})
    both[1].board.publish(facts={"a": "1"})
    assert until(lambda: both[1].said(0, "go")) == {"threads": 3}
    assert until(lambda: both[0].said(1, "facts")) == {"a": "1"}
    assert both[1].wait_for_go() == {"threads": 3}


def test_facts_that_differ_are_one_line(both: list[Company]) -> None:
    both[1].board.publish(facts={"torch": "2.14.0", "data_digest": "ab"})
    with pytest.raises(UserError, match=r"torch is 2.14.1 on rank 0, but 2.14.0 on rank 1; start all processes"):
        both[0].join({"torch": "2.14.1", "data_digest": "ab"}, "")


def test_a_fact_that_only_one_has_differs(both: list[Company]) -> None:
    both[1].board.publish(facts={"a": "1", "b": "2"})
    with pytest.raises(UserError, match="b is none on rank 0, but 2 on rank 1"):
        both[0].join({"a": "1"}, "")


def test_the_end_of_rank_0_is_that_of_the_others(both: list[Company]) -> None:
    for code, saved, error, exit_code in (
        (2, False, UserError, 2),
        (75, True, InterruptedRunError, 75),
        (1, True, InterruptedRunError, 75),
        (1, False, InterruptedRunError, 1),
    ):
        both[0].board.publish(end={"code": code, "text": "so", "saved": saved})
        until(lambda c=code, s=saved: both[1].end_word() == {"code": c, "text": "so", "saved": s})
        for ask in (both[1].check, both[1].wait_for_end):
            with pytest.raises(error, match=r"rank 0.*: so") as raised:
                ask()
            assert raised.value.exit_code == exit_code
    both[0].board.publish(end={"code": 0, "text": "finished", "saved": True})
    until(lambda: both[1].end_word()["code"] == 0)
    both[1].wait_for_end()
    assert both[1].wait_for_go() is None


def test_an_error_that_can_never_work_is_passed_on_and_others_are_a_loss(both: list[Company]) -> None:
    both[0].check()
    both[1].board.publish(failed={"code": 1, "text": "a bug"})
    until(lambda: both[0].said(1, "failed"))
    with pytest.raises(PeerLostError, match="lost rank 1: a bug"):
        both[0].check()
    both[1].board.publish(failed={"code": 2, "text": "bad data"})
    until(lambda: both[0].said(1, "failed")["code"] == 2)
    with pytest.raises(UserError, match="rank 1: bad data"):
        both[0].check()
    both[1].board.publish(failed={"code": 2, "text": "a loss of nan", "diverged": True})
    until(lambda: both[0].said(1, "failed").get("diverged"))
    with pytest.raises(DivergedError, match="rank 1: a loss of nan"):
        both[0].check()


@pytest.mark.parametrize("silent", [0, 1])
def test_silence_is_a_loss(both: list[Company], silent: int) -> None:
    other = both[1 - silent]
    until(lambda: silent in other.board.entries)
    other.check()
    both[silent].board._closing.set()  # its thread ends; its connection stays open
    both[silent].board._news.set()
    lost: list[str] = []

    def is_lost() -> bool:
        try:
            other.check()
        except PeerLostError as error:
            lost.append(str(error))
        return bool(lost)

    until(is_lost, 10)
    assert lost == [f"lost rank {silent}: nothing was heard of it for 1 s"]


def test_a_seat_that_is_taken_is_waited_for(both: list[Company]) -> None:
    second = StatusStore(world(1, both[0].world.port))
    second.start()
    until(lambda: "another process is rank 1 there" in second.obstacle)
    assert second.store is None
    second.close()


def test_nobody_there_is_told_by_name() -> None:
    port = free_port()
    for rank in (0, 1):
        alone = Company(world(rank, port, timeout_s=0.5), StopRequest())
        alone.board.start()
        with pytest.raises(RendezvousError, match=rf"at 127.0.0.1:{port} for rank {1 - rank} of 2 processes"):
            alone.join({}, "")
        alone.board.close()


def test_loopback_stays_loopback() -> None:
    assert is_loopback("localhost")
    assert not is_loopback("192.0.2.1")
    assert not is_loopback("name.invalid")
    with listen("localhost", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_a_port_in_use_is_said() -> None:
    with listen("localhost", 0) as listener, pytest.raises(OSError, match=r"port \d+ is in use here; set MASTER_PORT"):
        listen("localhost", listener.getsockname()[1])
