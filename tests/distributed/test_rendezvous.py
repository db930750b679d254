"""Two processes of a run find each other, watch each other and end together. Both are in this process, on a real
store."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from cnn_jobs.distributed import rendezvous as rendezvous_module
from cnn_jobs.distributed import status_store
from cnn_jobs.distributed.rendezvous import DistributedRendezvous
from cnn_jobs.distributed.status_store import Entry
from cnn_jobs.distributed.world import World
from cnn_jobs.errors import (
    CONTINUE,
    CnnJobsError,
    DivergedError,
    InterruptedRunError,
    PeerLostError,
    RendezvousError,
    UserError,
)
from cnn_jobs.local_server.server import free_port
from cnn_jobs.system.signals import StopRequest
from tests.helpers.waiting import until


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_store, "TICK_S", 0.05)
    monkeypatch.setattr(status_store, "RETRY_S", 0.05)
    monkeypatch.setattr(rendezvous_module, "SILENT_S", 0.6)
    monkeypatch.setattr(rendezvous_module, "SHUTDOWN_TIMEOUT_S", 0.5)


def world(rank: int, port: int, timeout_s: float = 20.0) -> World:
    return World(size=2, rank=rank, address="127.0.0.1", port=port, timeout_s=timeout_s)


@pytest.fixture
def both() -> Iterator[list[DistributedRendezvous]]:
    port = free_port()
    both = [DistributedRendezvous(world(rank, port), StopRequest()) for rank in (0, 1)]
    for each in both:
        each.statuses.start()
    until(lambda: all(each.statuses.store for each in both))
    yield both
    for each in reversed(both):
        each.statuses.close()


def test_status_reaches_the_other_process(both: list[DistributedRendezvous]) -> None:
    both[0].statuses.publish(go={"threads": 3})
    both[1].statuses.publish(facts={"a": "1"})
    assert until(lambda: both[1].status(0, "go")) == {"threads": 3}
    assert until(lambda: both[0].status(1, "facts")) == {"a": "1"}
    assert both[1].wait_for_threads() == 3


def test_different_facts_are_a_one_line_error(both: list[DistributedRendezvous]) -> None:
    both[1].statuses.publish(facts={"torch": "2.14.0", "data_digest": "ab"})
    with pytest.raises(UserError, match=r"torch is 2.14.1 on rank 0, but 2.14.0 on rank 1; start all processes"):
        both[0].join({"torch": "2.14.1", "data_digest": "ab"}, "")


def test_missing_fact_differs(both: list[DistributedRendezvous]) -> None:
    both[1].statuses.publish(facts={"a": "1", "b": "2"})
    with pytest.raises(UserError, match="b is none on rank 0, but 2 on rank 1"):
        both[0].join({"a": "1"}, "")


def test_rank_0_ends_the_others(both: list[DistributedRendezvous]) -> None:
    for code, saved, error, exit_code in (
        (2, False, UserError, 2),
        (75, True, InterruptedRunError, 75),
        (1, True, InterruptedRunError, 75),
        (1, False, InterruptedRunError, 1),
    ):
        both[0].statuses.publish(end={"code": code, "text": "so", "saved": saved})
        until(lambda c=code, s=saved: both[1].result_of_root() == {"code": c, "text": "so", "saved": s})
        for call in (both[1].check, both[1].wait_for_end):
            with pytest.raises(error, match=r"rank 0.*: so") as caught:
                call()
            assert caught.value.exit_code == exit_code
    both[0].statuses.publish(end={"code": 0, "text": "finished", "saved": True})
    until(lambda: both[1].result_of_root()["code"] == 0)
    both[1].wait_for_end()
    assert both[1].wait_for_threads() is None


def test_error_of_a_worker_ends_rank_0(both: list[DistributedRendezvous]) -> None:
    """As a lost process, or with the same error where that can never work."""
    both[0].check()
    both[1].statuses.publish(failed={"code": 1, "text": "a bug"})
    until(lambda: both[0].status(1, "failed"))
    with pytest.raises(PeerLostError, match="lost rank 1: a bug"):
        both[0].check()
    both[1].statuses.publish(failed={"code": 2, "text": "bad data"})
    until(lambda: both[0].status(1, "failed")["code"] == 2)
    with pytest.raises(UserError, match="rank 1: bad data"):
        both[0].check()
    both[1].statuses.publish(failed={"code": 2, "text": "a loss of nan", "diverged": True})
    until(lambda: both[0].status(1, "failed").get("diverged"))
    with pytest.raises(DivergedError, match="rank 1: a loss of nan"):
        both[0].check()


@pytest.mark.parametrize("silent", [0, 1])
def test_process_without_a_new_status_is_lost(both: list[DistributedRendezvous], silent: int) -> None:
    other = both[1 - silent]
    until(lambda: silent in other.statuses.entries)
    other.check()
    both[silent].statuses._closing.set()  # its thread ends; its connection stays open
    both[silent].statuses._changed.set()

    def lost() -> str:
        try:
            other.check()
        except PeerLostError as error:
            return str(error)
        return ""

    assert until(lost, 10) == f"lost rank {silent}: no status for 1 s"


def test_absent_ranks_are_named() -> None:
    port = free_port()
    for rank in (0, 1):
        single = DistributedRendezvous(world(rank, port, timeout_s=0.3), StopRequest())
        single.statuses.start()
        with pytest.raises(RendezvousError, match=rf"at 127.0.0.1:{port} for rank {1 - rank} of 2 processes"):
            single.join({}, "")
        single.statuses.close()


# -- a single process --------------------------------------------------------------------------------------------------


def stopped_rank_1() -> DistributedRendezvous:
    """Rank 1 after a SIGTERM, before rank 0 has saved the state."""
    stop = StopRequest()
    rendezvous = DistributedRendezvous(World(size=2, rank=1), stop)
    rendezvous.statuses.entries[0] = Entry({"beat": 1, "saved": False}, time.monotonic())
    stop.record(signal.SIGTERM)
    return rendezvous


def test_stopped_process_waits_until_rank_0_has_saved_the_state() -> None:
    rendezvous = stopped_rank_1()
    last = {"beat": 2, "end": {"code": CONTINUE, "text": "stopped by SIGTERM", "saved": True}}
    timer = threading.Timer(0.3, lambda: rendezvous.statuses.entries.update({0: Entry(last, time.monotonic())}))
    timer.start()
    with pytest.raises(InterruptedRunError, match="rank 0 ended: stopped by SIGTERM") as caught:
        rendezvous.wait_for_end()
    timer.join()
    assert caught.value.exit_code == CONTINUE


def test_stopped_process_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous_module, "FINAL_STATUS_TIMEOUT_S", 0.6)
    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM") as caught:
        stopped_rank_1().wait_for_end()
    assert caught.value.exit_code == CnnJobsError.exit_code


@pytest.mark.parametrize(("device", "refused"), [("H200 GPU-1", True), ("H200 GPU-2", False), ("", False)])
def test_shared_device_is_refused_for_nccl(device: str, refused: bool) -> None:
    rendezvous = DistributedRendezvous(World(size=2), StopRequest())
    rendezvous.statuses.entries[1] = Entry({"beat": 1, "facts": {"task": "task2"}, "device": device}, time.monotonic())
    if not refused:
        rendezvous.join({"task": "task2"}, "H200 GPU-1" if device else "")
        return
    with pytest.raises(UserError, match="ranks 0 and 1 are both on H200 GPU-1, but NCCL needs one process per device"):
        rendezvous.join({"task": "task2"}, "H200 GPU-1")
