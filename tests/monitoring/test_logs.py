from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn_jobs.monitoring.logs import JsonFormatter, TextFormatter
from tests.helpers.log_lines import strict_json


def record(message: object, *args: object, level: int = logging.INFO, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("cnn_jobs.train", level, __file__, 1, message, args, None)
    made.__dict__.update(extra)
    return made


def test_a_line_has_time_level_logger_message_and_context() -> None:
    made = record("step %d", 7, fields={"val_loss": 0.25})
    made.created = 1_700_000_000.1234
    formatter = JsonFormatter(lambda: {"task": "task2", "run_key": "k", "attempt": 2, "step": 7})
    assert strict_json(formatter.format(made)) == {
        "time": "2023-11-14T22:13:20.123Z",
        "level": "info",
        "logger": "cnn_jobs.train",
        "message": "step 7",
        "task": "task2",
        "run_key": "k",
        "attempt": 2,
        "step": 7,
        "val_loss": 0.25,
    }


@given(st.text(), st.dictionaries(st.text(), st.floats() | st.text() | st.none() | st.lists(st.floats())))
def test_any_record_is_one_line_of_strict_json(message: str, fields: dict[str, Any]) -> None:
    text = JsonFormatter().format(record("%s", message, fields=fields))
    assert len(text.splitlines()) == 1
    strict_json(text)


def test_a_traceback_is_in_its_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        made = record("failed", level=logging.ERROR, exc_info=sys.exc_info())
    line = strict_json(JsonFormatter().format(made))
    assert (line["level"], line["error"]) == ("error", "ValueError")
    assert line["traceback"].endswith("ValueError: two\nlines\n")
    text = TextFormatter().format(made)
    assert "error: failed (cnn_jobs.train)\nTraceback" in text
    assert text.endswith("ValueError: two\nlines")


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_a_record_whose_arguments_do_not_fit_is_logged(formatter: logging.Formatter) -> None:
    assert "%d images ('many',) (TypeError" in formatter.format(record("%d images", "many"))


@pytest.mark.parametrize("formatter", [JsonFormatter(lambda: {"url": "http://u:hunter2@h"}), TextFormatter()])
def test_no_secret_is_in_a_message_a_field_or_a_traceback(formatter: logging.Formatter) -> None:
    try:
        raise ValueError("http://u:hunter2@h")
    except ValueError:
        made = record("http://u:%s@h", "hunter2", exc_info=sys.exc_info(), fields={"a": ["http://u:hunter2@h"]})
    assert "hunter2" not in formatter.format(made)
    assert "hunter2" not in formatter.format(record("", json_line='{"url": "http://u:hunter2@h"}'))
