"""Processes known by more than their number, so that a recycled pid is never taken for its predecessor."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import psutil

# psutil reads the boot time in whole seconds, and two readings of it may differ by one (Linux: `btime`).
START_TOLERANCE_S = 2.0


@dataclass(frozen=True)
class ProcessId:
    """One process: its pid, when it started in seconds after boot, and its arguments (none: not compared).

    Seconds after boot, and not the time of day: that is set while processes run (NTP, a laptop waking up).
    The arguments tell apart two that started equally long after two boots.
    """

    pid: int
    started_s: float
    command: tuple[str, ...]

    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        now = identify(self.pid)
        if now is None or self.command not in ((), now.command):
            return False
        return abs(now.started_s - self.started_s) < START_TOLERANCE_S


def identify(pid: int) -> ProcessId | None:
    """The process that has ``pid`` now; ``None`` if there is none, or not one that we may look at."""
    try:
        process = psutil.Process(pid)
        # Without the program's own path: a framework build of Python on macOS changes it while it starts.
        command = tuple(process.cmdline()[1:])
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return ProcessId(pid, process.create_time() - psutil.boot_time(), command)
    except psutil.Error:
        return None


def descendants(process: ProcessId) -> list[ProcessId]:
    """Every process below ``process``, without arguments: one just forked still shows those of its parent."""
    if not process.is_alive():
        return []
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return []
    return [replace(found, command=()) for child in below if (found := identify(child.pid))]


def listens_on(process: ProcessId, port: int) -> bool:
    """Whether ``process`` accepts TCP connections on ``port``."""
    try:
        connections = psutil.Process(process.pid).net_connections("tcp")
    except psutil.Error:
        return False
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)


def end(processes: Iterable[ProcessId], grace_s: float = 10.0) -> list[ProcessId]:
    """SIGTERM to ``processes`` and all below them, SIGKILL after ``grace_s``; returns those left for it."""
    family = {one.pid: one for process in processes for one in (process, *descendants(process))}
    rest = _signal(family.values(), signal.SIGTERM, grace_s)
    _signal(rest, signal.SIGKILL, grace_s)
    return rest


def _signal(processes: Iterable[ProcessId], number: signal.Signals, wait_s: float) -> list[ProcessId]:
    """Sends one signal to the living among ``processes``; returns those that still live after ``wait_s``."""
    living = _still_alive(list(processes))
    for process in living:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)
    deadline = time.monotonic() + wait_s
    while (living := _still_alive(living)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return living


def _still_alive(processes: Sequence[ProcessId]) -> list[ProcessId]:
    for process in processes:
        # One that we started ourselves stays a zombie until it is waited for.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
    return [process for process in processes if process.is_alive()]
