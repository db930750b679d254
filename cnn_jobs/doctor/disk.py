"""The state directory's disk: writable, with room and inodes left."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from cnn_jobs.doctor.finding import Finding, failed, from_error, ok, warning
from cnn_jobs.errors import from_os_error

MIB = 1 << 20
# A run of task3e leaves 40 MB, one of task4a 250 MB beside its kept features.
FAILED_BYTES, WARNING_BYTES = 100 * 10**6, 2 * 10**9
FAILED_INODES, WARNING_INODES = 100, 1000
CHOOSE = "free some, or choose another disk by --state-dir"


def check_disk(folder: Path) -> Finding:
    """A file can be written in the state directory, and there is room for checkpoints. Leaves nothing behind."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_and_delete(folder)
            room = os.statvfs(folder)
        finally:
            for each in missing:
                with contextlib.suppress(OSError):
                    each.rmdir()
    except OSError as error:
        return from_error(from_os_error(error, folder), CHOOSE)
    free, inodes = room.f_bavail * room.f_frsize, room.f_favail
    # btrfs and some network file systems make inodes as they go, and say 0 of 0.
    without_limit = room.f_files == 0
    size = f"{free / 1e9:.1f} GB" if free >= 10**9 else f"{free / 1e6:.1f} MB"
    found = f"{folder}: {size} and {'any number of' if without_limit else f'{inodes:,}'} inodes free"
    if free < FAILED_BYTES or (inodes < FAILED_INODES and not without_limit):
        least = f"{FAILED_BYTES / 1e6:.0f} MB and {FAILED_INODES} inodes are needed"
        return failed(f"{found}; at least {least}", CHOOSE)
    if free < WARNING_BYTES or (inodes < WARNING_INODES and not without_limit):
        few = f"{WARNING_BYTES / 1e9:.0f} GB and {WARNING_INODES:,} inodes"
        return warning(f"{found}: several runs need more than that, {few} are on the safe side", CHOOSE)
    return ok(found)


def write_and_delete(folder: Path) -> None:
    """Writes a block to a new file, brings it to the disk and deletes it. Raises ``OSError``."""
    path = folder / f"doctor-{uuid.uuid4().hex}"
    try:
        with path.open("xb") as stream:
            stream.write(b"\0" * 4096)
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
