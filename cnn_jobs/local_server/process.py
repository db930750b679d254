"""Processes identified by more than their pid, so that a recycled pid is never mistaken for its predecessor."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import psutil

# psutil reads the boot time in whole seconds, and two readings may differ by one (Linux: `btime`).
START_TOLERANCE_S = 2.0


@dataclass(frozen=True)
class ProcessId:
    """A process: its pid, its start in seconds after boot, and its arguments; () to compare no arguments.

    Seconds after boot, because the time of day may be set while processes run (NTP, a laptop waking up). The arguments
    distinguish processes that started equally long after two boots.
    """

    pid: int
    started_s: float
    command: tuple[str, ...]

    def is_alive(self) -> bool:
        """Whether exactly this process still runs; a zombie does not."""
        now = identify(self.pid)
        if now is None or self.command not in ((), now.command):
            return False
        return abs(now.started_s - self.started_s) < START_TOLERANCE_S

    def family(self) -> list[ProcessId]:
        """This process and its descendants, which carry no arguments: after a fork they still are the parent's."""
        if not self.is_alive():
            return [self]
        try:
            children = psutil.Process(self.pid).children(recursive=True)
        except psutil.Error:
            return [self]
        return [self, *(replace(found, command=()) for child in children if (found := identify(child.pid)))]

    def listens_on(self, port: int) -> bool:
        """Whether the process accepts TCP connections on ``port``."""
        try:
            connections = psutil.Process(self.pid).net_connections("tcp")
        except psutil.Error:
            return False
        return any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in connections)


def identify(pid: int) -> ProcessId | None:
    """The process that has ``pid`` now; ``None`` if there is none, or it may not be inspected."""
    try:
        process = psutil.Process(pid)
        # Without the path of the program: a framework build of Python on macOS changes it while it starts.
        command = tuple(process.cmdline()[1:])
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return ProcessId(pid, process.create_time() - psutil.boot_time(), command)
    except psutil.Error:
        return None


def end(processes: Iterable[ProcessId], grace_s: float = 10.0) -> list[ProcessId]:
    """SIGTERM to ``processes`` and their descendants, SIGKILL after ``grace_s``; returns those that needed it."""
    family = {each.pid: each for process in processes for each in process.family()}
    stubborn = _signal(family.values(), signal.SIGTERM, grace_s)
    _signal(stubborn, signal.SIGKILL, grace_s)
    return stubborn


def _signal(processes: Iterable[ProcessId], number: signal.Signals, wait_s: float) -> list[ProcessId]:
    """Sends a signal to the living ``processes``; returns those that still live after ``wait_s``."""
    living = _living(processes)
    for process in living:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)
    deadline = time.monotonic() + wait_s
    while (living := _living(living)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return living


def _living(processes: Iterable[ProcessId]) -> list[ProcessId]:
    found = []
    for process in processes:
        # A child of this process remains a zombie until it is waited for.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
        if process.is_alive():
            found.append(process)
    return found
