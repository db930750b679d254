"""How the processes of a distributed run find each other, watch each other and end together."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

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
from cnn_jobs.system.signals import LEAST_S, StopRequest

if TYPE_CHECKING:  # the processes find each other while torch is imported
    import torch

    from cnn_jobs.training.process_group import ProcessGroup

# A process without a new status for so long is gone. Far more than a busy machine or a full disk delays a thread; far
# less than the minute within which the others have to end.
SILENT_S = 20.0
POLL_S = 0.05
# After a signal: how long the others wait for rank 0, which saves the state and reports that. Less than the ten seconds
# within which a process has to end.
FINAL_STATUS_TIMEOUT_S = 8.0
# How long rank 0 waits until the others know how it ended.
SHUTDOWN_TIMEOUT_S, EARLY_SHUTDOWN_TIMEOUT_S = 5.0, 15.0
Answer = TypeVar("Answer")
Facts = Mapping[str, str]


class Rendezvous:
    """The other processes of a run, as rank 0 sees them; in this base class there are none.

    ``made_progress``: whether this attempt advanced the run, by what outlives it; set by rank 0's attempt.
    """

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World()
        self.made_progress: Callable[[], bool] = lambda: False

    def join(self, facts: Facts, device: str) -> None:
        """Waits until all processes are there. Raises ``UserError`` where one is about to train something else, or uses
        the same ``device`` as another ("": a device that may be shared)."""

    def start(self, threads: int, device: torch.device) -> ProcessGroup:
        """Waits until all processes are ready to train, and connects them."""
        from cnn_jobs.training.process_group import ProcessGroup

        return ProcessGroup()

    def end(self, code: int, text: str, *, diverged: bool = False) -> None:
        """Publishes how this process ended."""


class DistributedRendezvous(Rendezvous):
    """Several processes. A stop of one stops all: a process that learns of it sends itself the signal."""

    def __init__(self, world: World, stop: StopRequest) -> None:
        super().__init__(world)
        self._stop, self._passed_on = stop, False
        self._began = time.monotonic()
        self.statuses = StatusStore(world, self._own_status)
        self._others = range(1, world.size)  # of rank 0

    # -- the start -------------------------------------------------------------------------------------------------

    def join(self, facts: Facts, device: str) -> None:
        """Waits up to the world's timeout. Raises ``RendezvousError``, and on rank 0 also as the base class."""
        self.statuses.publish(facts=dict(facts), device=device)
        if self.world.rank:
            self._wait(lambda: self.status(0, "joined") or self.result_of_root(), self._missing)
            return
        self._wait(lambda: all(self.status(rank, "facts") for rank in self._others), self._missing)
        for rank in self._others:
            _compare(facts, self.status(rank, "facts"), rank)
        _refuse_shared([device, *(self.status(rank, "device") for rank in self._others)])
        self.statuses.publish(joined=True)

    def start(self, threads: int, device: torch.device) -> ProcessGroup:
        """Rank 0 also gives the others its number of ``threads``."""
        from cnn_jobs.training.process_group import DistributedGroup

        if self.world.rank == 0:
            self.statuses.publish(go={"threads": threads})
            self._wait(lambda: all(self.status(rank, "ready") for rank in self._others))
            self.statuses.publish(start=True)
        else:
            self.statuses.publish(ready=True)
            self._wait(lambda: self.status(0, "start"))
        assert self.statuses.store
        return DistributedGroup(self.world.rank, self.world.size, self.statuses.store.clone(), device, self.check)

    def wait_for_threads(self) -> int | None:
        """The threads on which rank 0 trains; ``None`` where it ended well without training: the run was finished."""
        answer = self._wait(lambda: self.status(0, "go") or self.result_of_root())
        return None if "code" in answer else answer["threads"]

    # -- on the way ------------------------------------------------------------------------------------------------

    def status(self, rank: int, field: str) -> Any:
        """A field of the last status of ``rank``, ``None`` where it has none."""
        entry = self.statuses.entries.get(rank)
        return entry.content.get(field) if entry else None

    def check(self) -> None:
        """Raises ``PeerLostError`` for a lost process, or the error that another process ended with."""
        if self.world.rank:
            if result := self.result_of_root():
                raise _error_of_root(result)
        else:
            for rank in self._others:
                if failed := self.status(rank, "failed"):
                    raise _error_of_worker(rank, failed)
        if self.statuses.failure:
            raise PeerLostError(f"lost rank 0: {self.statuses.failure}")
        for rank, entry in list(self.statuses.entries.items()):
            if time.monotonic() - entry.heard > SILENT_S:
                raise PeerLostError(f"lost rank {rank}: no status for {SILENT_S:.0f} s")

    def result_of_root(self) -> Any:
        """How rank 0 ended, once it has: exit code, text, and whether it advanced the run."""
        return self.status(0, "end")

    def wait_for_end(self) -> None:
        """Waits until rank 0 has finished the run. Raises what it ended with.

        After a signal too: its final status reports whether the run's state is saved.
        """
        result = self._wait(self.result_of_root, grace_s=FINAL_STATUS_TIMEOUT_S)
        if result["code"]:
            raise _error_of_root(result)

    # -- the end ---------------------------------------------------------------------------------------------------

    def end(self, code: int, text: str, *, diverged: bool = False) -> None:
        """Publishes how this process ended. Rank 0 waits a few seconds until the others know.

        Exit code 2 also has to reach processes that have not connected yet, which takes longer.
        """
        final = code == UserError.exit_code
        limit = time.monotonic() + (EARLY_SHUTDOWN_TIMEOUT_S if final else SHUTDOWN_TIMEOUT_S)
        if self.world.rank:
            failed = {"code": code, "text": text, "diverged": diverged}
            self.statuses.publish(**({"heard_end": True} if self.result_of_root() else {"failed": failed}))
        else:
            saved = code == CONTINUE or self.made_progress()
            self.statuses.publish(end={"code": code, "text": text, "saved": saved})
        while time.monotonic() < limit and not self._is_known(final):
            time.sleep(POLL_S)
        self.statuses.close()

    def _is_known(self, final: bool) -> bool:
        if self.world.rank:
            return bool(self.statuses.store or self.statuses.failure or not final)
        return all(map(self._knows_end, self._others))

    def _knows_end(self, rank: int) -> bool:
        entry = self.statuses.entries.get(rank)
        gone = entry is not None and time.monotonic() - entry.heard > SHUTDOWN_TIMEOUT_S
        return bool(gone or self.status(rank, "heard_end") or self.status(rank, "failed"))

    # -- details ---------------------------------------------------------------------------------------------------

    def _own_status(self) -> Mapping[str, Any]:
        """In the store's thread: passes a stop on, and publishes this process' own."""
        stopped = any(entry.content.get("stop") for entry in list(self.statuses.entries.values()))
        if stopped and not self._passed_on and not self._stop.requested():
            self._passed_on = True
            os.kill(os.getpid(), signal.SIGTERM)
        return {"stop": stopped or bool(self._stop.signal_name), "saved": self.made_progress()}

    def _wait(
        self, question: Callable[[], Answer], on_timeout: Callable[[], str] | None = None, *, grace_s: float = 0.0
    ) -> Answer:
        """Polls ``question`` until its answer is true. Raises as ``check``, ``grace_s`` seconds after a signal, and
        after the world's timeout with the text of ``on_timeout``."""
        while not (answer := question()):
            if not self._stop.signal_name or self._stop.seconds_left(grace_s) <= LEAST_S:
                self._stop.check()
            self.check()
            if on_timeout and time.monotonic() - self._began > self.world.timeout_s:
                raise RendezvousError(on_timeout())
            time.sleep(POLL_S)
        return answer

    def _missing(self) -> str:
        world = self.world
        absent = [rank for rank in range(world.size) if rank != world.rank and not self.status(rank, "facts")]
        who = f"rank {', '.join(map(str, absent if world.rank == 0 else [0]))}"
        where = f"{world.address}:{world.port}"
        why = f" ({self.statuses.obstacle})" if self.statuses.obstacle and not self.statuses.store else ""
        return (
            f"waited {world.timeout_s:.0f} s at {where} for {who} of {world.size} processes{why}; start all of them, "
            "or allow more time with --rendezvous-timeout"
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
                f"ranks {first[device]} and {rank} are both on {device}, but NCCL needs one process per device; give "
                "each pod its own GPU (not one shared by time-slicing), or train in one process"
            )


def _error_of_worker(rank: int, failed: Mapping[str, Any]) -> CnnJobsError:
    if failed["code"] == UserError.exit_code:
        kind = DivergedError if failed.get("diverged") else UserError
        return kind(f"rank {rank}: {failed['text']}")
    return PeerLostError(f"lost rank {rank}: {failed['text']}")


def _error_of_root(result: Mapping[str, Any]) -> CnnJobsError:
    if result["code"] == UserError.exit_code:
        return UserError(f"rank 0: {result['text']}")
    return InterruptedRunError(f"rank 0 ended: {result['text']}", saved=result["saved"])


@contextmanager
def rendezvous_of(world: World, stop: StopRequest) -> Iterator[Rendezvous]:
    """Looks for the other processes, for as long as the context lasts; reports to them an error that ends it."""
    if not world.distributed:
        yield Rendezvous(world)
        return
    bind_gloo_to_loopback(world.address)
    # A lost connection is reported in one line of ours, not in torch's C++ log.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    rendezvous = DistributedRendezvous(world, stop)
    rendezvous.statuses.start()
    try:
        yield rendezvous
    except BaseException as error:
        code = error.exit_code if isinstance(error, CnnJobsError) else 1
        text = str(error) if isinstance(error, CnnJobsError) else f"{type(error).__name__}: {error}"
        with stop.masked(), contextlib.suppress(Exception):
            rendezvous.end(code, " ".join(text.split()), diverged=isinstance(error, DivergedError))
        raise
