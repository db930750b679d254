import errno
import inspect

import pytest

from cnn_jobs import errors
from cnn_jobs.errors import CnnJobsError, DiskError, DiskFullError, StateDirError, UserError, from_os_error


def test_user_errors_exit_with_2_and_all_others_with_1() -> None:
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, CnnJobsError)]
    never = {c.__name__ for c in classes if c.exit_code == 2}
    assert {c.exit_code for c in classes} == {1, 2}
    assert never >= {"RecipeError", "DataError", "DeviceError", "DivergedError", "StateDirError", "TrackingUriError"}
    assert never == {c.__name__ for c in classes if issubclass(c, UserError)}


@pytest.mark.parametrize(
    ("numbers", "kind", "exit_code", "message"),
    [
        ([errno.ENOSPC, errno.EDQUOT], DiskFullError, 1, "no space left"),
        (
            [errno.EACCES, errno.EROFS, errno.ENOTDIR],
            StateDirError,
            2,
            "cannot be written (the reason); choose a directory that you own",
        ),
        ([errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM], DiskError, 1, "the disk fails (the reason)"),
    ],
)
def test_a_failed_access_is_a_full_disk_a_missing_permission_or_a_failing_disk(
    numbers: list[int], kind: type[CnnJobsError], exit_code: int, message: str
) -> None:
    for number in numbers:
        error = from_os_error(OSError(number, "the reason"), "a/b.pt")
        assert (type(error), error.exit_code) == (kind, exit_code)
        assert str(error).startswith(f"a/b.pt: {message}")
