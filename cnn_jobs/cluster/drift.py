"""Drift: differences between the files in a folder and what the registry renders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path

from cnn_jobs.cluster.manifests import text_of
from cnn_jobs.cluster.plans import SUFFIX, choose
from cnn_jobs.cluster.settings import Settings
from cnn_jobs.errors import UserError, from_os_error

RENDER = "'cnn-jobs manifests render' rewrites it"


def differences(folder: Path, settings: Settings) -> list[str]:
    """A line for each difference from the rendering, in fields, comments or files; empty if there is no drift.

    Raises ``UserError`` (exit 2) where there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name it by --out, or run 'cnn-jobs manifests render'")
    plans = {plan.file: plan for plan in choose([], data_volume=bool(settings.data_claim))}
    found = []
    for name, plan in plans.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{path}: missing, expected Job {plan.name}; {RENDER}")
            continue
        try:
            # Undecodable bytes become characters that no rendering has.
            text = path.read_bytes().decode(errors="replace")
        except OSError as error:
            raise from_os_error(error, path, "read") from error
        found += [f"{path}: {line}; {RENDER}" for line in compare(text, text_of(plan, settings))]
    surplus = sorted(each for each in folder.glob(f"*{SUFFIX}") if each.name not in plans)
    return found + [f"{path}: no Job of the registry has this file; delete it" for path in surplus]


def compare(text: str, expected: str) -> Iterator[str]:
    """The lines in which two texts differ, line endings included; a block that only one of them has counts once."""
    theirs, ours = (each.splitlines(keepends=True) for each in (text, expected))
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes():
        if tag == "replace" and i2 - i1 == j2 - j1:
            for number, pair in enumerate(zip(ours[j1:j2], theirs[i1:i2], strict=True), start=i1 + 1):
                yield _difference(number, [pair[0]], [pair[1]])
        elif tag != "equal":
            yield _difference(i1 + 1, ours[j1:j2], theirs[i1:i2])


def _difference(number: int, expected: Sequence[str], found: Sequence[str]) -> str:
    ours, theirs = ("".join(lines) for lines in (expected, found))
    if ours.strip() != theirs.strip():
        ours, theirs = ours.strip(), theirs.strip()
    return f"line {number}: expected {_shown(ours)}, found {_shown(theirs)}"


def _shown(text: str) -> str:
    shown = repr(text) if text else "nothing"
    return shown if len(shown) <= 100 else f"{shown[:100]}..."
