"""One process at a time in a run's folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self

from cnn_jobs.errors import AnotherAttemptError, from_os_error
from cnn_jobs.system.files import make_folder


def try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock on a file until it is closed; ``None`` where another process has it.

    The file is made where it is missing. Raises ``DiskFullError`` or ``StateDirError``.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise from_os_error(error, path) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:  # a file system without locks
        os.close(descriptor)
        raise from_os_error(error, path) from error
    return descriptor


class RunLock:
    """A lock on a run's folder; the system frees it when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        """Takes the lock. Raises ``AnotherAttemptError`` where another process has it."""
        path = make_folder(folder) / "lock"
        descriptor = try_lock(path)
        if descriptor is None:
            holder = path.read_text(errors="replace").strip()
            raise AnotherAttemptError(
                f"run {folder.name} is in the hands of process {holder or 'unknown'} on this machine; wait for its end "
                "or stop it"
            )
        self._descriptor = descriptor
        try:
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, str(os.getpid()).encode())
        except OSError:  # a full disk: the number is only for people, the lock holds without it
            pass

    def release(self) -> None:
        """Gives the lock back; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()
