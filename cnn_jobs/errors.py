"""Every error that a user can meet, with its exit code, and the texts of errors of libraries.

Exit code 2: the command can never succeed as it was given (Kubernetes: ``FailJob``). 75: progress is saved, and the
same command continues (Kubernetes: ``Ignore``). 1: this attempt failed.
A message names the value, the rule and the next step, on one line.
"""

from __future__ import annotations

import errno

# EX_TEMPFAIL of sysexits.h: run the command again.
CONTINUE = 75


class CnnJobsError(Exception):
    """An attempt failed; a later one may succeed."""

    exit_code = 1
    run_key = ""  # of the run that failed, if there was one


class UserError(CnnJobsError):
    """The command can never succeed as it was given."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe field is out of range, or two fields contradict each other."""


class DataError(UserError):
    """A data set is missing, damaged or not of the expected form."""


class WeightsError(UserError):
    """Pretrained weights are missing, damaged or of another network."""


class DeviceError(UserError):
    """The requested device is not on this machine."""


class StateDirError(UserError):
    """A file or folder cannot be written."""


class TrackingUriError(UserError):
    """``MLFLOW_TRACKING_URI`` is not a URI that MLflow supports."""


class ArtifactLocationError(UserError):
    """The experiment's artifacts belong into a folder that the MLflow server does not share with this machine."""


class DivergedError(UserError):
    """The training loss was not finite: the recipe diverges, and would do so again."""


class TrackingError(CnnJobsError):
    """MLflow refused a call, or did not answer in time."""


class RemoteDataError(CnnJobsError):
    """A server of data or weights failed or did not answer: another attempt may succeed."""


class DiskFullError(CnnJobsError):
    """A disk has no space left."""


class DiskError(CnnJobsError):
    """A disk, or what is mounted in its place, fails."""


class InterruptedRunError(CnnJobsError):
    """A signal stopped the run before it was complete. ``saved``: this attempt made progress that is saved."""

    def __init__(self, message: str = "stopped", *, saved: bool = False) -> None:
        super().__init__(message)
        if saved:
            self.exit_code = CONTINUE


class StoppedError(SystemExit):
    """SIGTERM stopped a command that has no state to resume from: exit code 1.

    Not an ``Exception``: much code turns any exception of a library into an error of its own.
    """

    def __init__(self, message: str) -> None:
        super().__init__(CnnJobsError.exit_code)
        self.message = message

    def __str__(self) -> str:
        return self.message


class PeerLostError(InterruptedRunError):
    """Another process of a distributed training is lost, or sent nothing for too long: this one cannot continue."""


class RendezvousError(CnnJobsError):
    """The processes of a distributed training did not all connect in time."""


class NotShippedError(CnnJobsError):
    """The work is done, but MLflow lacks records of it. ``kept``: they are on a disk that outlives this process."""

    def __init__(self, message: str, *, kept: bool) -> None:
        super().__init__(message)
        if kept:
            self.exit_code = CONTINUE


class RejectedRecordsError(CnnJobsError):
    """MLflow refused records of the run for good."""


class AnotherAttemptError(CnnJobsError):
    """Another process trains this run."""


class ClusterError(CnnJobsError):
    """Kubernetes did not answer, or could not do now what was requested."""


class ClusterRefusalError(UserError):
    """Kubernetes refused a request for good."""


class CancelledRunError(UserError):
    """The run was cancelled; it is not resumed by accident."""


class DeletedExperimentError(CancelledRunError):
    """A user deleted the experiment, and with it all of its runs."""


class CheckpointMismatchError(UserError):
    """A checkpoint is of another recipe or data set, or a required one is missing."""


class RunMismatchError(CheckpointMismatchError):
    """The run with this key is another one: of another task, recipe, data set or role."""


class ReproductionError(UserError):
    """A run cannot be reproduced here."""


class DamagedCheckpointError(CnnJobsError):
    """A file is a damaged checkpoint, or none."""


class DamagedJournalError(CnnJobsError):
    """A journal does not name its run."""


class ThreadError(CnnJobsError):
    """A thread of this process died of an unexpected error."""


# Errors that last until the user acts; any other (a failing disk, too many open files) may be gone at the next attempt.
_LASTING = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL,
)  # fmt: skip


def from_os_error(error: OSError, path: object, doing: str = "written") -> CnnJobsError:
    """The error of a failed access to ``path``: disk full (exit 1), no permission (exit 2) or failing disk (exit 1)."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"{path}: no space left on the device; free some or choose another directory")
    if error.errno in _LASTING:
        return StateDirError(f"{path}: cannot be {doing} ({error.strerror}); choose a directory that you own")
    return DiskError(f"{path}: the disk fails ({error.strerror or error}); try again, and check it if it fails again")


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's text on one line, cut to ``limit`` characters; its type if it has none."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def first_line(error: BaseException, limit: int = 300) -> str:
    """The first line of an error's text, cut to ``limit`` characters; its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else type(error).__name__
