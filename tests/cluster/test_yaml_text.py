"""What is written is read back as it was, by every parser."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cnn_jobs.cluster.yaml_text import to_yaml

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
def test_what_is_written_is_read_back(content: dict[str, Any]) -> None:
    assert yaml.safe_load(to_yaml(content, {})) == content


@pytest.mark.parametrize(
    "word",
    ["yes", "No", "on", "OFF", "true", "null", "~", "y", "N", "1.10", "1e3", "0x10", "1_000", "2026-11-24", "", "="],
)
def test_what_some_parser_takes_for_no_string_is_quoted(word: str) -> None:
    assert to_yaml({"a": word}, {}) == f'a: "{word}"\n'


def test_the_order_and_the_form_are_as_given() -> None:
    content = {
        "kind": "Job",
        "a": {"z": 1, "b": [True, "x y", "--out"]},
        "list": [{"name": "one", "in": [{"k": {"deep": "5Gi"}}]}, {"c": []}, {"d": {}}],
    }
    assert to_yaml(content, {}) == (
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


def test_a_comment_stands_above_what_it_is_of_and_is_wrapped() -> None:
    content = {"a": {"b": 1}, "l": [{"name": "one", "v": 1}, {"v": 2}]}
    comments = {"a.b": "Why.", "l[one]": "The first.", "l[1]": "The second.", "l[one].v": "word " * 40}
    text = to_yaml(content, comments)
    assert yaml.safe_load(text) == content
    lines = text.splitlines()
    assert lines[:6] == ["a:", "  # Why.", "  b: 1", "l:", "  # The first.", "  - name: one"]
    assert lines[-2:] == ["  # The second.", "  - v: 2"]
    assert sum(line.startswith("    # word") for line in lines) == 2
    assert max(map(len, lines)) <= 118


def test_a_comment_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"comments of nothing: a\.c"):
        to_yaml({"a": {"b": 1}}, {"a.c": "Why."})
