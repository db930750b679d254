"""The folder of a killed run is damaged before it continues: it stays the same run, and damage is reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.survival import EXIT_CODES, Lab, compare

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

TASK = "task3e"


def flip(path: Path, part: float) -> None:
    """Flips a bit in the byte at this part of the file."""
    data = bytearray(path.read_bytes())
    data[int(part * (len(data) - 1))] ^= 4
    path.write_bytes(data)


def cut(path: Path, part: float) -> None:
    """Truncates the file to this part."""
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])


# By name: what damages a run's folder, and a part of the expected warning, "" for none.
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "last.pt flipped": (lambda d: flip(d / "checkpoints/last.pt", 0.5), "last.pt"),
    "last.pt cut": (lambda d: cut(d / "checkpoints/last.pt", 0.7), "last.pt"),
    "last.pt missing": (lambda d: (d / "checkpoints/last.pt").unlink(), ""),
    "both checkpoints flipped": (
        lambda d: (flip(d / "checkpoints/last.pt", 0.2), flip(d / "checkpoints/previous.pt", 0.9)),
        "previous.pt",
    ),
    "all checkpoints missing": (lambda d: [path.unlink() for path in (d / "checkpoints").iterdir()], ""),
    "journal flipped at its head": (lambda d: flip(d / "journal.jsonl", 0.01), "hold no intact record"),
    "journal flipped in the middle": (lambda d: flip(d / "journal.jsonl", 0.5), "hold no intact record"),
    "journal cut": (lambda d: cut(d / "journal.jsonl", 0.6), ""),
    "journal empty": (lambda d: (d / "journal.jsonl").write_bytes(b""), ""),
    "journal missing": (lambda d: (d / "journal.jsonl").unlink(), ""),
    "cursor damaged": (lambda d: (d / "shipped.json").write_text("{"), ""),
    "costs damaged": (lambda d: (d / "ledger.json").write_text("[]"), ""),
    "outbox missing": (lambda d: [path.rename(d / path.name) for path in (d / "outbox").iterdir()], ""),
    "partial file": (lambda d: (d / "checkpoints/last.pt.0a1b2c3d.partial").write_bytes(b"half"), ""),
}


@pytest.mark.parametrize("sent", EXIT_CODES)
@pytest.mark.parametrize("name", DAMAGE)
def test_run_with_a_damaged_folder_continues_as_the_same_run(lab: Lab, name: str, sent: str) -> None:
    key = f"{name}-{sent}".replace(" ", "-")
    first = lab.train(TASK, key, hook="signal_at_step", hook_args=[7, sent])
    assert first.code == EXIT_CODES[sent], first.stderr
    damage, warning = DAMAGE[name]
    damage(lab.state_dir(key) / key)
    second = lab.train(TASK, key)
    assert second.code == 0, second.stderr
    assert "Traceback" not in second.stderr
    if warning:
        (line,) = [line for line in second.stderr.splitlines() if "warning" in line and warning in line]
        assert key in line
    outcome = lab.outcome(TASK, key)
    assert compare(lab.reference(TASK), outcome) == []
    assert outcome.status == "FINISHED"
    assert not list((lab.state_dir(key) / key).rglob("*.partial"))


@pytest.mark.parametrize("slot", ["last.pt", "alternate.pt"])
@pytest.mark.parametrize("damage", [flip, cut])
def test_damaged_upload_leaves_the_other_slot(lab: Lab, slot: str, damage: Callable[[Path, float], None]) -> None:
    key = f"upload-{slot}-{damage.__name__}"
    assert lab.train(TASK, key, hook="signal_at_step", hook_args=[9, "SIGTERM"]).code == 75
    lab.lose_state(key)
    # The server keeps its artifacts in a folder of its own.
    run_id = lab.run_of(TASK, key).info.run_id
    (path,) = [path for path in (lab.folder / "server").rglob(slot) if run_id in str(path)]
    damage(path, 0.5)
    second = lab.train(TASK, key)
    assert second.code == 0, second.stderr
    (line,) = [line for line in second.stderr.splitlines() if "warning: from MLflow" in line]
    assert slot in line
    assert compare(lab.reference(TASK), lab.outcome(TASK, key)) == []
