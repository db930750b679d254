import errno
import inspect

import pytest

from cnn_jobs import errors
from cnn_jobs.errors import CnnJobsError, DiskError, DiskFullError, StateDirError, UserError, from_os_error


def test_what_can_never_work_ends_with_2_and_what_may_work_later_with_1() -> None:
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, CnnJobsError)]
    never = {c.__name__ for c in classes if c.exit_code == 2}
    assert {c.exit_code for c in classes} == {1, 2}
    assert never >= {"RecipeError", "DataError", "DeviceError", "DivergedError", "StateDirError", "TrackingUriError"}
    assert never == {c.__name__ for c in classes if issubclass(c, UserError)}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_from_a_folder_that_cannot_be_written(number: int) -> None:
    error = from_os_error(OSError(number, "No space left on device"), "a/b.pt")
    assert isinstance(error, DiskFullError)
    assert error.exit_code == 1
    assert str(error).startswith("a/b.pt: no space left")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOTDIR])
def test_a_folder_that_cannot_be_written_is_named_with_the_reason(number: int) -> None:
    error = from_os_error(OSError(number, "the reason"), "a/b.pt")
    assert isinstance(error, StateDirError)
    assert error.exit_code == 2
    assert str(error) == "a/b.pt: cannot be written (the reason); choose a directory that you own"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM])
def test_a_disk_that_fails_may_work_another_time(number: int) -> None:
    error = from_os_error(OSError(number, "the reason"), "a/b.pt")
    assert isinstance(error, DiskError)
    assert error.exit_code == 1
    assert str(error).startswith("a/b.pt: the disk fails (the reason)")
