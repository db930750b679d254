"""Ctrl-C ends a command, also where Python drops the exception."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

from tests.conftest import until

DROPPED = """
    class Slow:
        def __del__(self):
            print("here", flush=True)
            time.sleep(30)  # the signal comes here: what it raises is printed, and ignored
    end_on_ctrl_c(130, 0.5)
    Slow()
    time.sleep(60)
"""
RAISED = """
    end_on_ctrl_c(130, 30)
    print("here", flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(7)
"""
IGNORED = """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_on_ctrl_c(130, 0.1)
    print("here", flush=True)
    time.sleep(2)
"""


@pytest.mark.parametrize(
    ("body", "code"), [(DROPPED, 130), (RAISED, 7), (IGNORED, 0)], ids=["dropped", "raised", "ignored"]
)
def test_ctrl_c_ends_the_process(body: str, code: int) -> None:
    script = "import signal, sys, time\nfrom cnn_jobs.stop import end_on_ctrl_c\n" + textwrap.dedent(body)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "here\n"
            process.send_signal(signal.SIGINT)
            until(lambda: process.poll() is not None, 20)
        finally:
            process.kill()
    assert process.returncode == code
