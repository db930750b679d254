"""task4a, killed while its features are computed and afterwards: real processes and signals, images of real size."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnn_jobs.training.feature_cache import FOLDER
from tests.helpers.survival import EXIT_CODES, Lab, compare

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def options(resnet18_file: Path) -> tuple[object, ...]:
    return ("--weights", resnet18_file, "--trunk-cache", "disk", "--epochs", 2)


@pytest.mark.parametrize("lose", [False, True], ids=["state-kept", "state-lost"])
@pytest.mark.parametrize(
    ("hook", "place", "sent"),
    [
        ("signal_in_pass", 0, "SIGKILL"),
        ("signal_in_pass", 3, "SIGKILL"),
        ("signal_in_pass", 3, "SIGTERM"),
        ("signal_at_step_in_chunks", 1, "SIGKILL"),
        ("signal_at_step_in_chunks", 5, "SIGKILL"),
        ("signal_at_step_in_chunks", 6, "SIGTERM"),
    ],
)
def test_killed_run_continues_as_the_same_run(
    lab: Lab, options: tuple[object, ...], hook: str, place: int, sent: str, lose: bool
) -> None:
    reference = lab.reference("task4a", *options, hook="small_chunks")
    key = f"{hook}-{place}-{sent}-{lose}"
    first = lab.train("task4a", key, *options, hook=hook, hook_args=[place, sent])
    assert first.code == EXIT_CODES[sent], first.stderr
    assert sent == "SIGKILL" or first.seconds_after_signal < 10
    if lose:
        lab.lose_state(key)
    elif hook == "signal_in_pass":
        assert list((lab.state_dir(key) / FOLDER).glob("*.features"))
    second = lab.train("task4a", key, *options, hook="small_chunks")
    assert second.code == 0, second.stderr
    if not lose and hook == "signal_in_pass" and place:
        # 10 images a chunk; after SIGTERM the present chunk is finished.
        found = place * 10 + (10 if sent == "SIGTERM" else 0)
        assert f"frozen backbone: {found} of 52 images" in second.stderr
    assert compare(reference, lab.outcome("task4a", key)) == []
    lab.lose_state(key)  # 200 MB
