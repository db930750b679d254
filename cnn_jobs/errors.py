"""Every error a user can meet, and the exit code it ends with.

Exit code 2 says "this can never work, do not try again" (Kubernetes: ``FailJob``); 75 says "progress is saved, the
same command goes on" (Kubernetes: ``Ignore``); 1 says "this attempt failed".
A message names the value, the rule and the next step, on one line.
"""

from __future__ import annotations

import errno

# EX_TEMPFAIL of sysexits.h: call again.
CONTINUE = 75


class CnnJobsError(Exception):
    """An attempt failed in a way that a later one may not."""

    exit_code = 1
    # Of the run that it ended, where there was one.
    run_key = ""


class UserError(CnnJobsError):
    """The request can never work as it was made."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe field is out of range, or two of them contradict each other."""


class DataError(UserError):
    """A data set is missing, damaged or not of the expected form."""


class WeightsError(UserError):
    """Pretrained weights are missing, damaged or of another network."""


class DeviceError(UserError):
    """The device asked for is not on this machine."""


class StateDirError(UserError):
    """The state directory cannot be written."""


class TrackingUriError(UserError):
    """``MLFLOW_TRACKING_URI`` is not one that MLflow understands."""


class DivergedError(UserError):
    """The training loss was not finite: the recipe diverges, and would again."""


class TrackingError(CnnJobsError):
    """MLflow refused, or did not answer in time."""


class RemoteDataError(CnnJobsError):
    """An object store did not answer, or refused: another attempt may succeed."""


class DiskFullError(CnnJobsError):
    """A disk has no room left."""


class DiskError(CnnJobsError):
    """A disk, or what is mounted in its place, does not do what it should."""


class InterruptedRunError(CnnJobsError):
    """A signal asked the run to stop before it was done; ``saved``: this attempt brought it further."""

    def __init__(self, message: str = "stopped", *, saved: bool = False) -> None:
        super().__init__(message)
        if saved:
            self.exit_code = CONTINUE


class StoppedError(SystemExit):
    """SIGTERM came to a command that has nothing to continue from: exit code 1.

    No ``Exception``: many places pass on whatever a library raises under a name of theirs, and this is none of it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(CnnJobsError.exit_code)
        self.message = message

    def __str__(self) -> str:
        return self.message


class PeerLostError(InterruptedRunError):
    """Another process of a distributed training is gone, or was not heard of for too long: this one cannot go on."""


class RendezvousError(CnnJobsError):
    """The processes of a distributed training did not find each other in time."""


class NotShippedError(CnnJobsError):
    """The work is done, but MLflow does not have all of it; ``kept``: what is missing outlives this process."""

    def __init__(self, message: str, *, kept: bool) -> None:
        super().__init__(message)
        if kept:
            self.exit_code = CONTINUE


class RejectedRecordsError(CnnJobsError):
    """MLflow refused records of the run for good."""


class AnotherAttemptError(CnnJobsError):
    """Another process trains this run."""


class ClusterError(CnnJobsError):
    """Kubernetes did not answer, or not now what was asked."""


class ClusterRefusalError(UserError):
    """Kubernetes understood, and will not, however often it is asked."""


class CancelledRunError(UserError):
    """The run was cancelled: nobody goes on with it by accident."""


class CheckpointMismatchError(UserError):
    """A checkpoint is of another recipe or data set, or there is none where one must be."""


class ReproductionError(UserError):
    """A run cannot come out the same here."""


class DamagedCheckpointError(CnnJobsError):
    """A checkpoint is not as it was written, or the file is none."""


class DamagedJournalError(CnnJobsError):
    """A journal does not say which run it is of."""


class ThreadError(CnnJobsError):
    """A thread of this process died of an unexpected error."""


# What stays so until somebody changes it; anything else (a flaky disk, too many open files) may work another time.
LASTING = frozenset(
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOTDIR", "EISDIR", "ENOENT", "EEXIST", "ENAMETOOLONG", "ELOOP", "EINVAL")
)


def from_os_error(error: OSError, path: object, doing: str = "written") -> CnnJobsError:
    """The error of this tree for a failed access to ``path``: no room (exit 1), not allowed (exit 2), or a disk that
    fails (exit 1)."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"{path}: no space left on the device; free some or choose another directory")
    if error.errno in LASTING:
        return StateDirError(f"{path}: cannot be {doing} ({error.strerror}); choose a directory that you own")
    return DiskError(f"{path}: the disk fails ({error.strerror or error}); try again, and check it if that stays so")
