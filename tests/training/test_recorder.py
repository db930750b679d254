import pytest

from cnn_jobs.training.observer import NullRecorder, Recorders
from tests.training.conftest import ListRecorder


def test_recorders_pass_every_value_to_each_in_order() -> None:
    first, second = ListRecorder(), ListRecorder()
    Recorders(first, NullRecorder(), second).metrics({"val/loss": 1.5, "val/accuracy": 0.5}, 7)
    assert first.rows == second.rows == [("val/loss", 7, 1.5), ("val/accuracy", 7, 0.5)]


def test_the_error_of_one_recorder_is_not_swallowed() -> None:
    class Broken:
        def metrics(self, values: object, step: int) -> None:
            raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        Recorders(ListRecorder(), Broken()).metrics({}, 1)
