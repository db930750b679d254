"""What is left of a killed run is damaged before it is continued: never a wrong resume, and nothing that is silent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.survival import Lab, Outcome, compare

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

TASK = "task3e"


@pytest.fixture(scope="module")
def reference(lab: Lab) -> Outcome:
    assert lab.train(TASK, "whole").code == 0
    return lab.outcome(TASK, "whole")


def flip(path: Path, part: float) -> None:
    """One bit of the byte that lies at this part of the file."""
    data = bytearray(path.read_bytes())
    data[int(part * (len(data) - 1))] ^= 4
    path.write_bytes(data)


def cut(path: Path, part: float) -> None:
    """The file ends at this part of itself."""
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "last.pt flipped": (lambda d: flip(d / "checkpoints/last.pt", 0.5), "last.pt"),
    "last.pt cut": (lambda d: cut(d / "checkpoints/last.pt", 0.7), "last.pt"),
    "last.pt gone": (lambda d: (d / "checkpoints/last.pt").unlink(), ""),
    "both checkpoints flipped": (
        lambda d: (flip(d / "checkpoints/last.pt", 0.2), flip(d / "checkpoints/previous.pt", 0.9)),
        "previous.pt",
    ),
    "all checkpoints gone": (lambda d: [path.unlink() for path in (d / "checkpoints").iterdir()], ""),
    "journal flipped at its head": (lambda d: flip(d / "journal.jsonl", 0.01), "hold no intact record"),
    "journal flipped in the middle": (lambda d: flip(d / "journal.jsonl", 0.5), "hold no intact record"),
    "journal cut": (lambda d: cut(d / "journal.jsonl", 0.6), ""),
    "journal empty": (lambda d: (d / "journal.jsonl").write_bytes(b""), ""),
    "journal gone": (lambda d: (d / "journal.jsonl").unlink(), ""),
    "cursor garbled": (lambda d: (d / "shipped.json").write_text("{"), ""),
    "ledger garbled": (lambda d: (d / "ledger.json").write_text("[]"), ""),
    "outbox gone": (lambda d: [path.rename(d / path.name) for path in (d / "outbox").iterdir()], ""),
    "half a write left": (lambda d: (d / "checkpoints/last.pt.0a1b2c3d.partial").write_bytes(b"half"), ""),
}


@pytest.mark.parametrize("sent", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_state_continues_as_the_same_run(lab: Lab, reference: Outcome, name: str, sent: str) -> None:
    key = f"{name}-{sent}".replace(" ", "-")
    first = lab.train(TASK, key, hook="kill_at_step", hook_args=[7, sent])
    assert first.code == {"SIGKILL": -9, "SIGTERM": 75}[sent], first.stderr
    damage, expected = DAMAGE[name]
    damage(lab.state_dir(key) / key)
    second = lab.train(TASK, key)
    assert second.code == 0, second.stderr
    assert "Traceback" not in second.stderr
    if expected:
        (line,) = [line for line in second.stderr.splitlines() if "warning" in line and expected in line]
        assert key in line
    outcome = lab.outcome(TASK, key)
    assert compare(reference, outcome) == []
    assert outcome.status == "FINISHED"
    assert not list((lab.state_dir(key) / key).rglob("*.partial"))


@pytest.mark.parametrize("slot", ["last.pt", "alternate.pt"])
@pytest.mark.parametrize("how", [flip, cut], ids=["flipped", "cut"])
def test_an_upload_that_was_cut_off_leaves_the_other_one(
    lab: Lab, reference: Outcome, slot: str, how: Callable[[Path, float], None]
) -> None:
    key = f"upload-{slot}-{how.__name__}"
    assert lab.train(TASK, key, hook="kill_at_step", hook_args=[9, "SIGTERM"]).code == 75
    lab.lose_state(key)
    # The server keeps its artifacts in a folder of its own.
    (path,) = [path for path in (lab.folder / "server").rglob(slot) if lab.run_id(TASK, key) in str(path)]
    how(path, 0.5)
    second = lab.train(TASK, key)
    assert second.code == 0, second.stderr
    (line,) = [line for line in second.stderr.splitlines() if "warning: from MLflow" in line]
    assert slot in line
    assert compare(reference, lab.outcome(TASK, key)) == []
