"""A process says where it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CODE = """
import ctypes, sys, time
from cnn_jobs.monitoring import logs
from cnn_jobs.system.process import dump_stacks_on_signal

def stands_still():
    print("here", flush=True)
    if sys.argv[1] == "crash":
        ctypes.string_at(0)
    sys.stdin.read()

logs.configure("json")
dump_stacks_on_signal()
stands_still()
print("gone on")
"""


def test_on_sigusr1_it_shows_its_stacks_and_goes_on(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", CODE, "wait"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        assert process.stdout
        assert "here" in process.stdout.readline()
        os.kill(process.pid, signal.SIGUSR1)
        end = time.monotonic() + 20
        while "in stands_still" not in (tmp_path / "stderr").read_text():
            assert time.monotonic() < end
            time.sleep(0.02)
        out, _ = process.communicate("")
    assert process.returncode == 0
    assert "gone on" in out


def test_a_crash_in_native_code_shows_where() -> None:
    ended = subprocess.run([sys.executable, "-c", CODE, "crash"], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in ended.stderr
    assert "in stands_still" in ended.stderr
