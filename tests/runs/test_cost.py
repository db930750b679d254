"""The costs of a run's attempts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn_jobs.runs.cost import AttemptCost, RunCost, merged, read_costs
from cnn_jobs.system.files import read_or_empty as read_text
from cnn_jobs.training.loop import DeviceTime

COSTS = st.builds(
    AttemptCost,
    attempt=st.integers(1, 500),
    steps=st.integers(0, 10**6),
    device_seconds=st.floats(0, 1e5),
    wall_seconds=st.floats(0, 1e6),
)


@given(st.lists(COSTS, max_size=6), st.floats(0, 1), st.integers(0, 1000))
def test_useful_and_wasted_costs_add_up(before: list[AttemptCost], part: float, steps: int) -> None:
    spent = sum(each.steps for each in before)
    device = sum(each.device_seconds for each in before)
    own = DeviceTime(steps=steps, training_seconds=2.0, evaluation_seconds=1.0)
    cost = RunCost(9, time.monotonic() - 5, Path("unused"), own, before, int(part * spent), part * device)
    totals, useful = cost.totals(), cost.useful()
    assert totals["ledger/attempts"] == len(before) + 1
    assert totals["ledger/steps"] == spent + steps
    assert totals["ledger/steps_thrown_away"] + useful["steps"] == totals["ledger/steps"]
    wasted = totals["ledger/device_seconds_thrown_away"]
    assert abs(wasted + useful["device_seconds"] - totals["ledger/device_seconds"]) < 1e-6 * (1 + device)
    assert totals["ledger/wall_seconds"] >= sum(each.wall_seconds for each in before) + 5


def test_next_attempt_reads_the_costs(tmp_path: Path) -> None:
    own, before = DeviceTime(steps=3, training_seconds=1.2), [AttemptCost(1, 5, 1.5, 4.0)]
    cost = RunCost(2, time.monotonic() - 7, tmp_path / "ledger.json", own, before)
    cost.write()
    first, second = read_costs(read_text(cost.path))
    assert first == AttemptCost(1, 5, 1.5, 4.0)
    assert (second.attempt, second.steps) == (2, 3)
    assert 7 <= second.wall_seconds < 8
    # The journal may have more steps of a killed attempt; of two texts the fuller one counts.
    longer = read_costs(read_text(cost.path), steps_of_last=4)[-1]
    assert (longer.steps, longer.device_seconds) == (4, pytest.approx(1.2 * 4 / 3))
    assert read_costs(read_text(cost.path), steps_of_last=1)[-1].steps == 3
    assert len(read_costs('{"attempts": [], "useful": {}}', read_text(cost.path))) == 2
    assert read_costs("", "[]", "{", '{"attempts": [{"other": 1}]}') == []
    (tmp_path / "damaged").write_bytes(b'{"attempts": \xff')
    assert read_text(tmp_path / "none") == read_text(tmp_path / "damaged") == ""


def test_last_second_of_a_killed_attempt_is_estimated() -> None:
    """Without the backbone's pass over all images, 500 s, which is not part of a step."""
    text = '{"attempts": [{"attempt": 3, "steps": 2, "device_seconds": 500.4, "wall_seconds": 505.0}]}'
    (killed,) = read_costs(text, steps_of_last=7, last=3)
    assert (killed.steps, killed.device_seconds, killed.wall_seconds) == (7, 501.4, 505.0)
    # The journal belongs to another attempt.
    assert read_costs(text, steps_of_last=7, last=2)[0].steps == 2


@given(st.integers(1, 400))
def test_tag_holds_any_number_of_attempts(count: int) -> None:
    before = [AttemptCost(number, 123456, 12345.67, 123456.78) for number in range(1, count)]
    cost = RunCost(count, time.monotonic(), Path("unused"), DeviceTime(), before)
    text = cost.as_json()
    assert len(text) < 8000
    again = read_costs(text)
    assert sum(each.steps for each in again) == 123456 * (count - 1)
    assert again[-1].attempt == count


def test_oldest_attempts_are_merged() -> None:
    rows = [{"attempt": number, "steps": 10} for number in (1, 2, 3, 4)]
    assert merged(rows, most=2) == [{"attempt": 3, "steps": 30}, {"attempt": 4, "steps": 10}]
