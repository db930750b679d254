"""One process at a time in a run's folder."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cnn_jobs.errors import AnotherAttemptError, DiskError, StateDirError
from cnn_jobs.system.lock import RunLock

HOLDER = """
import sys, time
from pathlib import Path
from cnn_jobs.system.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_another_process_is_refused_until_the_holder_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "key")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(AnotherAttemptError, match=f"run key is in use by process {holder.pid} "):
                RunLock(tmp_path / "key")
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait(10)
            RunLock(tmp_path / "key").release()
        finally:
            holder.kill()


def test_lock_is_free_after_release_and_names_its_holder(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("123456789012345 of an older process")
    lock = RunLock(tmp_path)
    assert (tmp_path / "lock").read_text() == str(os.getpid())
    with pytest.raises(AnotherAttemptError):
        RunLock(tmp_path)
    lock.release()
    lock.release()  # a second call does nothing
    RunLock(tmp_path).release()


def test_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateDirError):
        RunLock(tmp_path / "file" / "key")


def test_file_system_without_locks_is_a_disk_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(DiskError, match="No locks available"):
        RunLock(tmp_path / "key")
