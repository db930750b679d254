"""What a process makes of the words of the others, without any of them."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from cnn_jobs.distributed import rendezvous
from cnn_jobs.distributed.rendezvous import Company
from cnn_jobs.distributed.status_store import Entry
from cnn_jobs.distributed.world import World
from cnn_jobs.errors import CONTINUE, CnnJobsError, InterruptedRunError, UserError
from cnn_jobs.system.signals import StopRequest


def stopped_company() -> Company:
    """Rank 1, whose SIGTERM has just come, and which has heard of rank 0 that nothing is saved yet."""
    stop = StopRequest()
    company = Company(World(size=2, rank=1), stop)
    company.board.entries[0] = Entry({"beat": 1, "saved": False}, time.monotonic())
    stop.note(signal.SIGTERM)
    return company


def test_a_stopped_process_waits_for_the_word_that_the_state_is_saved() -> None:
    company = stopped_company()
    last = {"beat": 2, "end": {"code": CONTINUE, "text": "stopped by SIGTERM", "saved": True}}
    timer = threading.Timer(0.3, lambda: company.board.entries.update({0: Entry(last, time.monotonic())}))
    timer.start()
    with pytest.raises(InterruptedRunError, match="rank 0 ended: stopped by SIGTERM") as caught:
        company.wait_for_end()
    timer.join()
    assert caught.value.exit_code == CONTINUE


def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "LAST_WORD_S", 0.7)
    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM") as caught:
        stopped_company().wait_for_end()
    assert caught.value.exit_code == CnnJobsError.exit_code


@pytest.mark.parametrize(("theirs", "refused"), [("H200 GPU-1", True), ("H200 GPU-2", False), ("", False)])
def test_two_processes_on_one_device_are_refused_where_it_cannot_be_shared(theirs: str, refused: bool) -> None:
    company = Company(World(size=2), StopRequest())
    company.board.entries[1] = Entry({"beat": 1, "facts": {"task": "task2"}, "device": theirs}, time.monotonic())
    if not refused:
        company.join({"task": "task2"}, "H200 GPU-1" if theirs else "")
        return
    with pytest.raises(UserError, match="ranks 0 and 1 are both on H200 GPU-1, but NCCL wants one process a device"):
        company.join({"task": "task2"}, "H200 GPU-1")
