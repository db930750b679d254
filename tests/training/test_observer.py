"""Fan-out to several observers."""

from __future__ import annotations

from typing import Any

import pytest

from cnn_jobs.training.observer import Observer, Phase, fan_out


class Listing(Observer):
    """Lists every call, whatever the method."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        for name in [name for name in vars(Observer) if not name.startswith("_")]:
            setattr(self, name, lambda *args, name=name: self.calls.append((name, *args)))


def test_every_call_reaches_each_observer_in_order() -> None:
    first, second = Listing(), Listing()
    second.calls = first.calls
    both = fan_out(first, Observer(), second)
    live: Any = object()
    expected: list[tuple[Any, ...]] = [
        ("attempt_opened", live),
        ("training_started", "a run", 9),
        ("step_finished", 1, 2.5),
        ("speed_measured", 2, 100.0),
        ("validated", 2, 1.5, 0.5),
        ("phase_changed", Phase.OUTPUTS, "plots"),
        ("warn", "careful"),
        ("attempt_ended", "finished"),
    ]
    assert {name for name, *_ in expected} == {name for name in vars(Observer) if not name.startswith("_")}
    for name, *args in expected:
        getattr(both, name)(*args)
    assert first.calls == [each for each in expected for _ in range(2)]


def test_error_of_an_observer_is_raised() -> None:
    class Broken(Observer):
        def warn(self, text: str) -> None:
            raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        fan_out(Listing(), Broken()).warn("careful")
