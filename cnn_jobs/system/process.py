"""Settings of this process: idle threads, freed memory, stack traces. Imports nothing heavy: they precede torch."""

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

# Iterations of GNU OpenMP's waiting loop, some tens of microseconds. The default of 300,000 is slowest beside a busy
# program, sleeping at once (OMP_WAIT_POLICY=PASSIVE) is slowest on an idle machine; this value is between the two, and
# on an idle machine as fast as the default (docs/performance.md).
SPIN_COUNT = "10000"

# From glibc's malloc.h. Blocks above the mmap threshold are mapped at every allocation, and free memory at the top of
# the heap beyond the trim threshold returns to the kernel, which then clears megabytes again at each step.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 1 << 30


def limit_spinning() -> None:
    """Sets ``GOMP_SPINCOUNT`` for this process and its children, unless the user has chosen a wait policy."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT


def keep_freed_memory() -> bool:
    """Makes glibc's allocator keep the memory that a step frees for the next one; returns whether it accepted that."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library, or none found
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGE))
    return False


def open_closed_streams() -> None:
    """Opens the null device as standard input, output or error where the caller closed it (``>&-``): otherwise the next
    file that is opened, such as a database, would get that number, and what is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def draw_files_only() -> None:
    """Sets matplotlib's backend for files: that of a notebook, which sets ``MPLBACKEND`` for its children, would end
    the process at the import. Call it before matplotlib is imported."""
    os.environ["MPLBACKEND"] = "agg"


def start_of_process() -> float:
    """When this process started, on the clock of ``time.monotonic``; now, where the system does not know."""
    try:
        # Field 22, in clock ticks since boot; the name in field 2 may hold spaces and brackets.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        age = 0.0
    return time.monotonic() - max(0.0, age)


_claimed: list[float] = []


def claim_start() -> float:
    """When the present run started, on the clock of ``time.monotonic``: the first run of a process starts with the
    process, so that imports and data count; later ones start now."""
    if _claimed:
        return time.monotonic()
    _claimed.append(start_of_process())
    return _claimed[0]


def dump_stacks_on_signal() -> None:
    """Prints the stacks of all threads to stderr on SIGUSR1, and before a fatal signal such as SIGSEGV ends the
    process.

    Plain text even where log lines are JSON: C code writes it, because Python may be what is stuck.
    """
    with contextlib.suppress(io.UnsupportedOperation, AttributeError, ValueError):  # stderr is not a file
        stderr = sys.__stderr__ or sys.stderr
        faulthandler.enable(stderr)
        if hasattr(signal, "SIGUSR1"):
            faulthandler.register(signal.SIGUSR1, stderr, all_threads=True)
