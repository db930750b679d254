"""Settings of this process that training is faster with. Imports nothing heavy: they go before torch."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import io
import os
import signal
import sys
import time
from pathlib import Path

# Iterations of GNU OpenMP's waiting loop, some tens of microseconds. Its default of 300,000 is slowest when another
# program wants a core, sleeping at once (OMP_WAIT_POLICY=PASSIVE) when none does; this lies between the two, and alone
# is as fast as the default. docs/performance.md has the figures.
SPIN_COUNT = "10000"

# From glibc's malloc.h. Blocks above the threshold are mapped anew at every allocation, and what is free at the heap's
# top beyond the trim threshold goes back to the system: at each step the kernel then clears megabytes once more.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 1 << 30


def limit_spinning() -> None:
    """Sets ``GOMP_SPINCOUNT`` for this process and its children, unless the user has said how to wait."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT


def keep_freed_memory() -> bool:
    """Lets glibc's allocator keep what a step frees for the next one; whether it took that (elsewhere it cannot)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library, or none to be found
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGE))
    return False


def start_of_process() -> float:
    """When this process began, on the clock of ``time.monotonic``; where the system does not tell, now."""
    try:
        # Field 22, in clock ticks since boot; the name in field 2 may hold spaces and brackets.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        age = 0.0
    return time.monotonic() - max(0.0, age)


_claimed: list[float] = []


def claim_start() -> float:
    """When the work under way began, on the clock of ``time.monotonic``: for the first of a process its own start,
    with imports and data, for those after it now."""
    if _claimed:
        return time.monotonic()
    _claimed.append(start_of_process())
    return _claimed[0]


def show_stacks() -> None:
    """The stacks of all threads go to stderr on SIGUSR1, and before the end by a fatal signal such as SIGSEGV.

    As text, also where lines are JSON: written by C, without Python, which may be what stands still.
    """
    with contextlib.suppress(io.UnsupportedOperation, AttributeError, ValueError):  # a stderr that is no file
        stderr = sys.__stderr__ or sys.stderr
        faulthandler.enable(stderr)
        if hasattr(signal, "SIGUSR1"):
            faulthandler.register(signal.SIGUSR1, stderr, all_threads=True)
