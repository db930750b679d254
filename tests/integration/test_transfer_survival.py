"""task4a killed while its features are computed and afterwards: real processes and signals, images of real size."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnn_jobs.training.feature_cache import FOLDER
from tests.helpers.survival import Lab, Outcome, compare

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


def arguments(weights: Path) -> tuple[object, ...]:
    return ("--weights", weights, "--trunk-cache", "disk", "--epochs", 2)


@pytest.fixture(scope="module")
def reference(lab: Lab, resnet18_file: Path) -> Outcome:
    ended = lab.train("task4a", "task4a-reference", *arguments(resnet18_file), hook="small_chunks")
    assert ended.code == 0, ended.stderr
    return lab.outcome("task4a", "task4a-reference")


@pytest.mark.parametrize("lose", [False, True], ids=["state-kept", "state-lost"])
@pytest.mark.parametrize(
    ("hook", "place", "sent"),
    [
        ("kill_in_pass", 0, "SIGKILL"),
        ("kill_in_pass", 3, "SIGKILL"),
        ("kill_in_pass", 3, "SIGTERM"),
        ("kill_at_step_in_chunks", 1, "SIGKILL"),
        ("kill_at_step_in_chunks", 5, "SIGKILL"),
        ("kill_at_step_in_chunks", 6, "SIGTERM"),
    ],
)
def test_killed_anywhere_and_continued_it_is_the_same_run(
    lab: Lab, reference: Outcome, resnet18_file: Path, hook: str, place: int, sent: str, lose: bool
) -> None:
    key = f"task4a-{hook}-{place}-{sent}-{lose}"
    first = lab.train("task4a", key, *arguments(resnet18_file), hook=hook, hook_args=[place, sent])
    assert first.code == {"SIGKILL": -9, "SIGTERM": 75}[sent], first.stderr
    assert sent == "SIGKILL" or first.seconds_after_signal < 10
    if lose:
        lab.lose_state(key)
    elif hook == "kill_in_pass":
        # What was computed is found: 10 images a chunk.
        assert list((lab.state_dir(key) / FOLDER).glob("*.features"))
    second = lab.train("task4a", key, *arguments(resnet18_file), hook="small_chunks")
    assert second.code == 0, second.stderr
    if not lose and hook == "kill_in_pass" and place:
        found = place * 10 + (10 if sent == "SIGTERM" else 0)  # the chunk under way is finished
        assert f"frozen backbone: {found} of 52 images" in second.stderr
    assert compare(reference, lab.outcome("task4a", key)) == []
    lab.lose_state(key)  # 200 MB
