"""Settings of a training process: our choice, unless the user has made one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from cnn_jobs.system.process import SPIN_COUNT, limit_spinning


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that monkeypatch puts back what was there
        monkeypatch.delenv(name)


def test_spinning_is_limited() -> None:
    limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == SPIN_COUNT


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7")])
def test_what_the_user_set_stays(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    limit_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == (value if name == "GOMP_SPINCOUNT" else None)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc")
def test_kept_memory_is_not_cleared_again_by_the_kernel() -> None:
    """Page faults of 50 allocations of 16 MB, each written to and freed."""
    script = (
        "import resource, sys, numpy as np\n"
        "from cnn_jobs.system.process import keep_freed_memory\n"
        "if sys.argv[1] == 'keep':\n"
        "    assert keep_freed_memory()\n"
        "np.ones(2 << 20)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(50):\n"
        "    np.ones(2 << 20)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )

    def faults(mode: str) -> int:
        command = [sys.executable, "-c", script, mode]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)

    # 4,096 pages an allocation, unless huge pages serve it; with memory that is kept, next to none.
    assert faults("keep") < 100
