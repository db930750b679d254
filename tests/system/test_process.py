"""Settings of the process: idle threads, freed memory, stack traces."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cnn_jobs.system.process import SPIN_COUNT, limit_spinning
from tests.helpers.waiting import until


@pytest.mark.parametrize(
    ("set_by_user", "expected"),
    [({}, SPIN_COUNT), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_spinning_is_limited_unless_the_user_chose(
    set_by_user: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    for name, value in set_by_user.items():
        monkeypatch.setenv(name, value)
    limit_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's allocator")
def test_freed_memory_is_kept() -> None:
    """Page faults of 50 allocations of 16 MB, each written to and freed."""
    script = """
import resource, numpy as np
from cnn_jobs.system.process import keep_freed_memory
assert keep_freed_memory()
np.ones(2 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    np.ones(2 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    # 4,096 pages an allocation, unless huge pages serve it; next to none where the memory is kept.
    assert int(ran.stdout) < 100


# -- stack traces ------------------------------------------------------------------------------------------------------

WAITING = """
import ctypes, sys
from cnn_jobs.monitoring import logs
from cnn_jobs.system.process import dump_stacks_on_signal

def waits_here():
    print("ready", flush=True)
    if sys.argv[1] == "crash":
        ctypes.string_at(0)
    sys.stdin.read()

logs.configure("json")
dump_stacks_on_signal()
waits_here()
print("continued")
"""


def test_sigusr1_prints_the_stacks_and_the_process_continues(tmp_path: Path) -> None:
    log = tmp_path / "stderr"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", WAITING, "wait"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout
    assert "ready" in process.stdout.readline()
    os.kill(process.pid, signal.SIGUSR1)
    until(lambda: "in waits_here" in log.read_text(), 20)
    out, _ = process.communicate("")
    assert process.returncode == 0
    assert "continued" in out


def test_crash_in_native_code_prints_the_stack() -> None:
    ran = subprocess.run([sys.executable, "-c", WAITING, "crash"], capture_output=True, text=True, check=False)
    assert ran.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in ran.stderr
    assert "in waits_here" in ran.stderr
