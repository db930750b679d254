"""Whether the files in a folder are what the registry renders, and where not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cnn_jobs.cluster.manifest import documents
from cnn_jobs.cluster.plans import SUFFIX, choose
from cnn_jobs.cluster.render import text_of
from cnn_jobs.cluster.settings import Settings
from cnn_jobs.cluster.yaml_text import item_path, key_path
from cnn_jobs.errors import UserError, from_os_error

AGAIN = "'cnn-jobs manifests render' writes it anew"
_ABSENT = object()


def differences(folder: Path, settings: Settings) -> list[str]:
    """A line for each field, file or comment that is not as it would be rendered; none for no drift.

    Raises ``UserError`` (exit 2) where there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; give that of the files by --out, or run 'cnn-jobs manifests render'"
        )
    plans = {plan.file: plan for plan in choose([], data_volume=bool(settings.data_claim))}
    found = []
    for name, plan in plans.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{path}: missing, expected Job {plan.name}; {AGAIN}")
            continue
        found += compare(path, text_of(plan, settings), documents(plan, settings))
    surplus = sorted(each for each in folder.glob(f"*{SUFFIX}") if each.name not in plans)
    return found + [f"{path}: no Job of the registry has this file; delete it" for path in surplus]


def compare(path: Path, expected_text: str, expected: list[dict[str, Any]]) -> list[str]:
    """The differences of one file."""
    import yaml

    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise from_os_error(error, path, "read") from error
    except UnicodeDecodeError:
        return [f"{path}: is no text in UTF-8, expected a Job; {AGAIN}"]
    if text == expected_text:
        return []
    try:
        # libyaml's, where PyYAML was built with it: ten times as fast.
        contents = list(yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        return [f"{path}: cannot be read as YAML ({' '.join(str(error).split())[:200]}); {AGAIN}"]
    if len(contents) != len(expected):
        return [f"{path}: holds {len(contents)} documents, expected {len(expected)}; {AGAIN}"]
    found = []
    for number, (theirs, ours) in enumerate(zip(contents, expected, strict=True)):
        found += [f"{path}: {line}; {AGAIN}" for line in _fields(f"[{number}]" if number else "", theirs, ours)]
    return found or [f"{path}: {_first_line(text, expected_text)}; {AGAIN}"]


def _fields(path: str, found: Any, expected: Any) -> Iterator[str]:
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        for key in dict.fromkeys([*expected, *found]):
            yield from _fields(key_path(path, str(key)), found.get(key, _ABSENT), expected.get(key, _ABSENT))
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for index, (theirs, ours) in enumerate(zip(found, expected, strict=True)):
            yield from _fields(item_path(path, index, ours), theirs, ours)
    # Compared with their types: true is not 1, and "1" is not 1.
    elif type(found) is not type(expected) or found != expected:
        yield f"{path or 'the document'}: expected {_shown(expected)}, found {_shown(found)}"


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:100]}..."


def _first_line(text: str, expected: str) -> str:
    """Where two texts with the same fields first differ: a comment, an order, a quote, the end of a line."""
    lines = zip_longest(text.splitlines(keepends=True), expected.splitlines(keepends=True), fillvalue="")
    number, theirs, ours = next((number, *pair) for number, pair in enumerate(lines, start=1) if pair[0] != pair[1])
    return f"line {number}: the fields are the same, its text is not: expected {_shown(ours)}, found {_shown(theirs)}"
