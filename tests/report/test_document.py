"""Text and numbers of a document."""

from __future__ import annotations

import pytest

from cnn_jobs.report.document import Document, Number, clean


def test_foreign_text_becomes_one_harmless_line() -> None:
    assert clean("a\n\tb \x1b[31m\u202egpj\x00") == "a b [31mgpj"
    assert clean("x" * 500) == "x" * 79 + "…"


@pytest.mark.parametrize(
    ("form", "value", "text", "unit"),
    [
        ("percent", 0.76317, "76.32", "fraction"),
        ("points", -0.0101, "\N{MINUS SIGN}1.01", "fraction"),
        ("change", 0.25, "+0.2500", "nats"),
        ("seconds", 12345.6, "12,346", "s"),
        ("p", 0.0001, "0.0001", ""),
        ("p", 0.00009, "< 0.0001", ""),
    ],
)
def test_numbers_are_formatted_by_their_form(form: str, value: float, text: str, unit: str) -> None:
    number = Number("task2", "measure", "mean", value, form)
    assert (number.text, number.unit) == (text, unit)


def test_run_lists_are_in_ranges() -> None:
    document = Document("", (), (), {"a": 1, "b": 2, "c": 3, "d": 5})
    assert document.run_list(["d", "c", "a", "b"]) == "1-3, 5"
    assert document.run_list([]) == ""
