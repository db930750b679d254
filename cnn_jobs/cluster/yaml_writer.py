"""A YAML writer for files that people read: keys in the given order, short lists on one line, comments above fields."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 118
# Words, paths, options and quantities. Everything else is quoted: parsers disagree on what is a number or a date.
_PLAIN = re.compile(r"[A-Za-z/][\w./-]*(?:[:=][\w./-]+)*|--[a-z][a-z-]*|[0-9]+(?:Mi|Gi|m)", flags=re.ASCII)
# Words that some YAML 1.1 parser reads as a boolean or null.
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


@dataclass(frozen=True)
class Commented:
    """A value of a mapping or list with the comment that is written above it; "" for none."""

    comment: str
    value: Any


def plain(content: Any) -> Any:
    """``content`` without comments: only dicts, lists and scalars."""
    if isinstance(content, Commented):
        return plain(content.value)
    if isinstance(content, Mapping):
        return {key: plain(value) for key, value in content.items()}
    return [plain(item) for item in content] if isinstance(content, list) else content


def to_yaml(content: Mapping[str, Any]) -> str:
    """One document. Values, at any depth, may be ``Commented``."""
    return "".join(f"{line}\n" for line in _mapping(content, 0))


def _mapping(content: Mapping[str, Any], depth: int) -> Iterator[str]:
    for key, value in content.items():
        yield from _comment(value, depth)
        value = _uncommented(value)
        start = f"{'  ' * depth}{_scalar(key)}:"
        if isinstance(value, Mapping) and value:
            yield start
            yield from _mapping(value, depth + 1)
        elif isinstance(value, list) and any(isinstance(_uncommented(item), Mapping) for item in value):
            yield start
            yield from _block_list(value, depth + 1)
        else:
            yield f"{start} {_flow(value)}"


def _block_list(items: Sequence[Any], depth: int) -> Iterator[str]:
    for item in items:
        yield from _comment(item, depth)
        value = _uncommented(item)
        if isinstance(value, Mapping) and value:
            # The dash takes the place of the first key's indentation.
            first, *others = _mapping(value, depth + 1)
            yield f"{'  ' * depth}- {first.lstrip()}"
            yield from others
        else:
            yield f"{'  ' * depth}- {_flow(value)}"


def _uncommented(value: Any) -> Any:
    return value.value if isinstance(value, Commented) else value


def _comment(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, Commented):
        indent = "  " * depth
        for line in textwrap.wrap(value.comment, WIDTH - len(indent) - 2, break_on_hyphens=False):
            yield f"{indent}# {line}"


def _flow(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    return "{}" if isinstance(value, Mapping) else _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    # JSON is YAML, except for how it escapes characters above U+FFFF.
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)
