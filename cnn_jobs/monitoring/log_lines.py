"""One log record as one line: a JSON object, or words for a person."""

from __future__ import annotations

import json
import logging
import math
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from cnn_jobs.monitoring.secrets import redact

# What a record may say of where it comes from: task, run_key, attempt, step.
Context = Callable[[], Mapping[str, object]]


class JsonFormatter(logging.Formatter):
    """A JSON object (RFC 8259) a record: time (UTC), level, logger, message, what ``context`` says of the run, the
    record's own ``fields``, and for an exception its type and traceback."""

    def __init__(self, context: Context = dict) -> None:
        super().__init__()
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **self._context(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0]:
            line["error"] = record.exc_info[0].__name__
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps({name: _plain(value) for name, value in line.items()}, ensure_ascii=True, allow_nan=False)


class TextFormatter(logging.Formatter):
    """``14:03:22 warning: message (mlflow.tracking)``, with a traceback below where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines, without the last one's end."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {level}{_message(record)} ({record.name})"
        if record.exc_info and record.exc_info[0]:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return redact(text)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage().strip()
    except Exception as error:  # a library's call whose arguments do not fit its words
        return f"{record.msg} {record.args!r} ({type(error).__name__}: {error})"


def _plain(value: Any) -> Any:
    """As JSON can hold it, without secrets."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {redact(str(name)): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return redact(str(value))
