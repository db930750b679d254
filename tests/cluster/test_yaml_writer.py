from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cnn_jobs.cluster.yaml_writer import Commented, plain, to_yaml

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cn", "Co", "Cf"]))
SCALARS = st.one_of(
    TEXT, st.booleans(), st.integers(), st.none(), st.sampled_from(["yes", "1e3", "0x1", "a: b", "- a"])
)
FLAT = st.one_of(SCALARS, st.lists(SCALARS))
MAPPINGS = st.recursive(
    st.dictionaries(TEXT, FLAT, min_size=1),
    lambda inner: st.dictionaries(
        TEXT, st.one_of(FLAT, inner, st.lists(st.one_of(inner, SCALARS, st.just({})))), min_size=1
    ),
)


@given(MAPPINGS)
def test_parsing_returns_what_was_written(content: dict[str, Any]) -> None:
    assert yaml.safe_load(to_yaml(content)) == content


@pytest.mark.parametrize(
    "word",
    ["yes", "No", "on", "OFF", "true", "null", "~", "y", "N", "1.10", "1e3", "0x10", "1_000", "2026-11-24", "", "="],
)
def test_ambiguous_strings_are_quoted(word: str) -> None:
    assert to_yaml({"a": word}) == f'a: "{word}"\n'


def test_order_and_layout() -> None:
    content = {
        "kind": "Job",
        "a": {"z": 1, "b": [True, "x y", "--out"]},
        "list": [{"name": "one", "in": [{"k": {"deep": "5Gi"}}]}, {"c": []}, {"d": {}}],
    }
    assert to_yaml(content) == (
        "kind: Job\n"
        "a:\n"
        "  z: 1\n"
        '  b: [true, "x y", --out]\n'
        "list:\n"
        "  - name: one\n"
        "    in:\n"
        "      - k:\n"
        "          deep: 5Gi\n"
        "  - c: []\n"
        "  - d: {}\n"
    )


def test_a_comment_stands_above_its_field_or_item_and_is_wrapped() -> None:
    items = [
        Commented("The first.", {"name": "one", "v": Commented("word " * 40, 1)}),
        Commented("The second.", {"v": 2}),
        Commented("", {"w": 3}),
    ]
    content = {"a": {"b": Commented("Why.", 1)}, "l": Commented("Both.", items)}
    assert plain(content) == {"a": {"b": 1}, "l": [{"name": "one", "v": 1}, {"v": 2}, {"w": 3}]}
    text = to_yaml(content)
    assert yaml.safe_load(text) == plain(content)
    lines = text.splitlines()
    assert lines[:7] == ["a:", "  # Why.", "  b: 1", "# Both.", "l:", "  # The first.", "  - name: one"]
    assert lines[-3:] == ["  # The second.", "  - v: 2", "  - w: 3"]
    assert sum(line.startswith("    # word") for line in lines) == 2
    assert max(map(len, lines)) <= 118
