import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn_jobs.training.loop import should_stop_early

LOSSES = st.lists(st.sampled_from([0.5, 1.0, 1.5]) | st.floats(0, 10), max_size=12)


@pytest.mark.parametrize(
    ("losses", "count", "stop"),
    [
        # The hand-out: among the last 4 validation losses, if the oldest is the smallest, stop.
        ([], 4, False),
        ([1.0], 4, False),
        ([1.0, 1.1, 1.2], 4, False),  # three so far
        ([1.0, 1.1, 1.2, 1.3], 4, True),
        ([1.0, 1.3, 1.2, 1.1], 4, True),  # falling again, but not below the oldest
        ([1.3, 1.2, 1.1, 1.0], 4, False),
        ([1.0, 1.1, 1.2, 0.9], 4, False),  # the newest is better
        ([1.0, 0.9, 1.2, 1.3], 4, False),  # the second is: it will be the oldest of the next four
        ([1.0, 0.9, 1.2, 1.3, 1.1], 4, True),
        ([0.1, 1.0, 0.9, 1.2, 1.3], 4, False),  # what is older than four does not count
        ([1.0, 1.0, 1.0, 1.0], 4, True),  # equal is not better
        ([1.0, 1.1], 2, True),
        ([1.1, 1.0], 2, False),
        ([1.0, 1.1, 1.2, 1.3, 1.4], 0, False),
        ([], 0, False),
    ],
)
def test_the_rule_of_the_hand_out(losses: list[float], count: int, stop: bool) -> None:
    assert should_stop_early(losses, count) is stop


@given(LOSSES, st.integers(2, 6))
def test_it_stops_exactly_if_nothing_of_the_window_is_below_its_oldest(losses: list[float], count: int) -> None:
    expected = len(losses) >= count and not any(loss < losses[-count] for loss in losses[-count:])
    assert should_stop_early(losses, count) is expected


@given(LOSSES)
def test_a_count_of_0_never_stops(losses: list[float]) -> None:
    assert should_stop_early(losses, 0) is False


@given(st.integers(2, 6), st.integers(1, 20))
def test_a_loss_that_always_falls_never_stops(count: int, length: int) -> None:
    assert not should_stop_early([1 / (n + 1) for n in range(length)], count)


def test_it_looks_at_the_losses_and_changes_none() -> None:
    losses = [3.0, 2.0, math.pi, 4.0]
    should_stop_early(losses, 4)
    assert losses == [3.0, 2.0, math.pi, 4.0]
