"""``python -m benchmarks.peak ARGS...``: runs ``python ARGS...`` and prints its peak resident memory in bytes.

A small process of its own, because on Linux a process inherits the peak of its parent.
"""

from __future__ import annotations

import os
import subprocess
import sys


def main() -> int:
    """Prints the peak and returns the exit code of the child; the child's output goes to stderr."""
    process = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    print(usage.ru_maxrss * unit)
    return abs(process.returncode)


if __name__ == "__main__":
    sys.exit(main())
