"""Plain data as YAML for people: in the given order, short lists on one line, comments above what they explain."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

WIDTH = 118
# Words, paths, options; and quantities. Everything else is quoted: parsers do not agree on what is a number or a date.
_PLAIN = re.compile(r"[A-Za-z/][\w./-]*(?:[:=][\w./-]+)*|--[a-z][a-z-]*|[0-9]+(?:Mi|Gi|m)", flags=re.ASCII)
# What some parser of YAML 1.1 takes for no string.
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def to_yaml(content: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """One document. ``comments``: path, as ``item_path`` and ``key_path`` make it, to text.

    Raises ``ValueError`` for a comment of a path that is not there.
    """
    left = dict(comments)
    text = "".join(f"{line}\n" for line in _mapping(content, "", 0, left))
    if left:
        raise ValueError(f"comments of nothing: {', '.join(left)}")
    return text


def key_path(path: str, key: str) -> str:
    """The path of a mapping's value."""
    return f"{path}.{key}" if path else key


def item_path(path: str, index: int, item: Any) -> str:
    """The path of a list's item: by its name where it has one, else by its number."""
    name = item.get("name") if isinstance(item, Mapping) else None
    return f"{path}[{name if isinstance(name, str) else index}]"


def _mapping(content: Mapping[str, Any], path: str, depth: int, comments: dict[str, str]) -> Iterator[str]:
    for key, value in content.items():
        here = key_path(path, key)
        yield from _comment(here, depth, comments)
        yield from _entry(f"{'  ' * depth}{_scalar(key)}:", value, here, depth, comments)


def _entry(start: str, value: Any, path: str, depth: int, comments: dict[str, str]) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        yield start
        yield from _mapping(value, path, depth + 1, comments)
    elif isinstance(value, list) and value and any(isinstance(item, Mapping) for item in value):
        yield start
        for index, item in enumerate(value):
            yield from _item(item, item_path(path, index, item), depth + 1, comments)
    else:
        yield f"{start} {_flow(value)}"


def _item(item: Any, path: str, depth: int, comments: dict[str, str]) -> Iterator[str]:
    yield from _comment(path, depth, comments)
    if not isinstance(item, Mapping) or not item:
        yield f"{'  ' * depth}- {_flow(item)}"
        return
    lines = list(_mapping(item, path, depth + 1, comments))
    # The dash takes the place of the first key's indentation.
    yield f"{'  ' * depth}- {lines[0].lstrip()}"
    yield from lines[1:]


def _comment(path: str, depth: int, comments: dict[str, str]) -> Iterator[str]:
    indent = "  " * depth
    for line in textwrap.wrap(comments.pop(path, ""), WIDTH - len(indent) - 2, break_on_hyphens=False):
        yield f"{indent}# {line}"


def _flow(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_scalar(item) for item in value)}]"
    return "{}" if isinstance(value, Mapping) else _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    # JSON is YAML, but for its way to escape what is beyond U+FFFF.
    text = json.dumps(value, ensure_ascii=False)
    return "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in text)
