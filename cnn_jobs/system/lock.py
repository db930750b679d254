"""One process at a time in a run's folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from cnn_jobs.errors import AnotherAttemptError, from_os_error
from cnn_jobs.system.files import make_folder


def try_lock(path: Path) -> int | None:
    """A file descriptor that holds an exclusive lock until it is closed; ``None`` where another process holds it.

    Creates the file where it is missing. Raises ``DiskFullError``, ``StateDirError`` or ``DiskError``.
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
    """The lock on a run's folder. The kernel releases it when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        """Takes the lock. Raises ``AnotherAttemptError`` where another process holds it."""
        path = make_folder(folder) / "lock"
        descriptor = try_lock(path)
        if descriptor is None:
            holder = path.read_text(errors="replace").strip()
            raise AnotherAttemptError(
                f"run {folder.name} is in use by process {holder or 'unknown'} on this machine; wait until it ends, or "
                "stop it"
            )
        self._descriptor = descriptor
        # Only for the message above; on a full disk the lock works without it.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())

    def release(self) -> None:
        """Releases the lock; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
