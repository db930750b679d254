"""The other processes of a distributed training: met at the start, watched on the way, told of the end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from cnn_jobs.distributed.status_store import StatusStore, bind_gloo_to_loopback
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
from cnn_jobs.system.signals import StopRequest

if TYPE_CHECKING:  # the command line meets the others while torch is imported
    import torch

    from cnn_jobs.training.process_group import Group


# A process that was not heard of for so long is gone. Far above what a busy machine or a full disk delays a thread by,
# far enough below the minute within which the others have to end.
SILENT_S = 20.0
POLL_S = 0.05
# After a signal: how long rank 0 is waited for, which saves the run's state and says so. Below the ten seconds within
# which a process has to end.
LAST_WORD_S = 8.0
# How long rank 0 waits for the others to have heard how it ended.
SHUTDOWN_TIMEOUT_S, EARLY_SHUTDOWN_TIMEOUT_S = 5.0, 15.0
Answer = TypeVar("Answer")
Facts = Mapping[str, str]


class Peers(Protocol):
    """The others, as rank 0 and a process alone see them."""

    world: World
    saved: Callable[[], bool]

    def join(self, facts: Facts, device: str) -> None:
        """Waits until all are there. Raises ``UserError`` where one of them is about to train something else, or on a
        ``device`` that another has ("": one that may be shared)."""

    def start(self, threads: int, device: torch.device) -> Group:
        """Waits until all are about to train, and connects them."""


class Alone:
    """Nobody else."""

    def __init__(self) -> None:
        self.world = World()
        self.saved: Callable[[], bool] = lambda: False

    def join(self, facts: Facts, device: str) -> None:
        """Nobody to wait for."""

    def start(self, threads: int, device: torch.device) -> Group:
        """A group of one."""
        from cnn_jobs.training.process_group import OneProcess

        return OneProcess()


class Company:
    """Several processes. A stop of one is a stop of all: whoever hears of it sends itself the signal.

    ``saved``, asked on rank 0: whether this attempt brought the run further; the others know it from there.
    """

    def __init__(self, world: World, stop: StopRequest) -> None:
        self.world = world
        self.saved: Callable[[], bool] = lambda: False
        self._stop, self._passed_on = stop, False
        self._began = time.monotonic()
        self.board = StatusStore(world, self._news)

    # -- the start -------------------------------------------------------------------------------------------------

    def join(self, facts: Facts, device: str) -> None:
        """Waits until all are there, up to the world's timeout.

        Raises ``RendezvousError``, and on rank 0 ``UserError`` where the facts of another rank are not its own, or two
        have one device.
        """
        self.board.publish(facts=dict(facts), device=device)
        if self.world.rank:
            self._wait(lambda: self.said(0, "joined") or self.end_word(), self._missing)
            return
        others = range(1, self.world.size)
        self._wait(lambda: all(self.said(rank, "facts") for rank in others), self._missing)
        for rank in others:
            _compare(facts, self.said(rank, "facts"), rank)
        _refuse_shared([device, *(self.said(rank, "device") for rank in others)])
        self.board.publish(joined=True)

    def start(self, threads: int, device: torch.device) -> Group:
        """Connects all processes as soon as each is ready; rank 0 tells the others on how many ``threads`` to train."""
        from cnn_jobs.training.process_group import ProcessGroup

        if self.world.rank == 0:
            self.board.publish(go={"threads": threads})
            self._wait(lambda: all(self.said(rank, "ready") for rank in range(1, self.world.size)))
            self.board.publish(start=True)
        else:
            self.board.publish(ready=True)
            self._wait(lambda: self.said(0, "start"))
        assert self.board.store
        return ProcessGroup(self.world.rank, self.world.size, self.board.store.clone(), device, self.check)

    def wait_for_go(self) -> Mapping[str, Any] | None:
        """Rank 0's word to train, ``None`` where it ended well without: the run was finished before."""
        word = self._wait(lambda: self.said(0, "go") or self.end_word())
        return None if "code" in word else word

    # -- on the way ------------------------------------------------------------------------------------------------

    def said(self, rank: int, what: str) -> Any:
        """What ``rank`` last said of ``what``."""
        entry = self.board.entries.get(rank)
        return entry.content.get(what) if entry else None

    def check(self) -> None:
        """Raises what the others make of this process: ``PeerLostError``, or the error that one of them ended with."""
        if self.world.rank:
            if word := self.end_word():
                raise _error_of(word)
        else:
            for rank in range(1, self.world.size):
                if failed := self.said(rank, "failed"):
                    raise _failed(rank, failed)
        if self.board.failure:
            raise PeerLostError(f"lost rank 0: {self.board.failure}")
        for rank, entry in list(self.board.entries.items()):
            if time.monotonic() - entry.heard > SILENT_S:
                raise PeerLostError(f"lost rank {rank}: nothing was heard of it for {SILENT_S:.0f} s")

    def end_word(self) -> Any:
        """How rank 0 ended, as far as it did: exit code, text, and whether the run was brought further."""
        return self.said(0, "end")

    def wait_for_end(self) -> None:
        """Until rank 0 has finished the run. Raises what it ended with.

        After a signal it is waited for, too: its last word says whether the run's state is saved.
        """
        word = self._wait(self.end_word, grace_s=LAST_WORD_S)
        if word["code"]:
            raise _error_of(word)

    # -- the end ---------------------------------------------------------------------------------------------------

    def end(self, code: int, text: str, *, diverged: bool = False) -> None:
        """Tells the others; rank 0 also waits until they have heard it, or a few seconds.

        What can never work is told to those, too, who have yet to come: for a little longer.
        """
        never = code == UserError.exit_code
        limit = time.monotonic() + (EARLY_SHUTDOWN_TIMEOUT_S if never else SHUTDOWN_TIMEOUT_S)
        if self.world.rank:
            failed = {"code": code, "text": text, "diverged": diverged}
            self.board.publish(**({"heard_end": True} if self.end_word() else {"failed": failed}))
        else:
            self.board.publish(end={"code": code, "text": text, "saved": code == CONTINUE or self.saved()})
        while time.monotonic() < limit and not self._is_told(never):
            time.sleep(POLL_S)
        self.board.close()

    def _is_told(self, never: bool) -> bool:
        if self.world.rank:
            return bool(self.board.store or self.board.failure or not never)
        return all(map(self._is_over, range(1, self.world.size)))

    def _is_over(self, rank: int) -> bool:
        entry = self.board.entries.get(rank)
        gone = entry is not None and time.monotonic() - entry.heard > SHUTDOWN_TIMEOUT_S
        return bool(gone or self.said(rank, "heard_end") or self.said(rank, "failed"))

    # -- details ---------------------------------------------------------------------------------------------------

    def _news(self) -> Mapping[str, Any]:
        """In the board's thread: passes a stop on, and tells of this process' own and of what is saved."""
        heard = any(entry.content.get("stop") for entry in list(self.board.entries.values()))
        if heard and not self._passed_on and not self._stop.requested():
            self._passed_on = True
            os.kill(os.getpid(), signal.SIGTERM)
        stopped = heard or bool(self._stop.signal_name)
        return {"stop": stopped, "saved": self.saved()}

    def _wait(
        self, question: Callable[[], Answer], on_timeout: Callable[[], str] | None = None, *, grace_s: float = 0.0
    ) -> Answer:
        """The first true answer; raises as ``check`` does, ``grace_s`` after a signal, and what ``on_timeout`` says."""
        while not (answer := question()):
            # Half a second is what is left at the least.
            if not self._stop.signal_name or self._stop.seconds_left(grace_s) <= 0.5:
                self._stop.check()
            self.check()
            if on_timeout and time.monotonic() - self._began > self.world.timeout_s:
                raise RendezvousError(on_timeout())
            time.sleep(POLL_S)
        return answer

    def _missing(self) -> str:
        world = self.world
        absent = [rank for rank in range(world.size) if rank != world.rank and not self.said(rank, "facts")]
        who = f"rank {', '.join(map(str, absent if world.rank == 0 else [0]))}"
        where = f"{world.address}:{world.port}"
        why = f" ({self.board.obstacle})" if self.board.obstacle and not self.board.store else ""
        return (
            f"waited {world.timeout_s:.0f} s at {where} for {who} of {world.size} processes{why}; start all of them, "
            "or give them longer by --rendezvous-timeout"
        )


def _compare(ours: Facts, theirs: Facts, rank: int) -> None:
    for name in dict.fromkeys([*ours, *theirs]):
        if ours.get(name) != theirs.get(name):
            one, other = str(ours.get(name, "none"))[:40], str(theirs.get(name, "none"))[:40]
            raise UserError(
                f"{name} is {one} on rank 0, but {other} on rank {rank}; start all processes with the same image, "
                "options and data"
            )


def _refuse_shared(devices: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for rank, device in enumerate(devices):
        if device and first.setdefault(device, rank) != rank:
            raise UserError(
                f"ranks {first[device]} and {rank} are both on {device}, but NCCL wants one process a device; give "
                "each pod a GPU of its own (not one that is shared by time), or train in one process"
            )


def _failed(rank: int, word: Mapping[str, Any]) -> CnnJobsError:
    if word["code"] == UserError.exit_code:
        kind = DivergedError if word.get("diverged") else UserError
        return kind(f"rank {rank}: {word['text']}")
    return PeerLostError(f"lost rank {rank}: {word['text']}")


def _error_of(word: Mapping[str, Any]) -> CnnJobsError:
    """What rank 0's end is to the others."""
    if word["code"] == UserError.exit_code:
        return UserError(f"rank 0: {word['text']}")
    return InterruptedRunError(f"rank 0 ended: {word['text']}", saved=word["saved"])


@contextmanager
def company(world: World, stop: StopRequest) -> Iterator[Company]:
    """Meets the others, for as long as the context lasts; an error that ends it is told to them."""
    bind_gloo_to_loopback(world.address)
    # What torch's C++ prints of a lost connection is told by us, in a line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    peers = Company(world, stop)
    peers.board.start()
    try:
        yield peers
    except BaseException as error:
        code = error.exit_code if isinstance(error, CnnJobsError) else 1
        text = str(error) if isinstance(error, CnnJobsError) else f"{type(error).__name__}: {error}"
        with stop.deferred(), contextlib.suppress(Exception):
            peers.end(code, " ".join(text.split()), diverged=isinstance(error, DivergedError))
        raise
