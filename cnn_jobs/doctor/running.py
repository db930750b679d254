"""Checks side by side, each with a time limit: what hangs becomes a finding and holds nobody up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cnn_jobs.doctor.finding import Finding, failed, from_error
from cnn_jobs.errors import CnnJobsError

Check = Callable[[], Finding]


def run(checks: Sequence[tuple[str, Check]], limit_s: float) -> list[Finding]:
    """What each check of that name found, in their order; one that takes longer than ``limit_s`` has failed.

    The threads do not hold up the process's exit.
    """
    found: dict[str, Finding] = {}

    def call(name: str, check: Check) -> None:
        found[name] = _guarded(check)

    threads = [threading.Thread(target=call, args=each, name=each[0], daemon=True) for each in checks]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = failed(
        f"no answer within {limit_s:.0f} s", "what it looks at hangs or is slow: a disk, a network or a server"
    )
    return [found.get(name, late).of(name) for name, _ in checks]


def _guarded(check: Check) -> Finding:
    """The check's finding; an error that it did not expect is one, too."""
    try:
        return check()
    except CnnJobsError as error:
        return from_error(error, "see 'cnn-jobs doctor --help'")
    except ImportError as error:
        return failed(f"a package is missing or broken ({error})", "see the check 'versions', and install it again")
    except Exception as error:
        return failed(
            f"{type(error).__name__}: {error} ({_place(error)})",
            "this check itself has failed: please report this line",
        )


def _place(error: Exception) -> str:
    """File and line that raised the error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno}" if trace else "nowhere"
