"""Where a process is, for one that stands still or crashes in native code."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import signal
import sys


def show_stacks() -> None:
    """The stacks of all threads go to stderr on SIGUSR1, and before the end by a fatal signal such as SIGSEGV.

    As text, also where lines are JSON: written by C, without Python, which may be what stands still.
    """
    with contextlib.suppress(io.UnsupportedOperation, AttributeError, ValueError):  # a stderr that is no file
        stderr = sys.__stderr__ or sys.stderr
        faulthandler.enable(stderr)
        if hasattr(signal, "SIGUSR1"):
            faulthandler.register(signal.SIGUSR1, stderr, all_threads=True)
