"""The output of this process: log records, warnings, tracebacks and printed lines, as JSON or text, without secrets."""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import logging
import math
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from cnn_jobs.system.environment import in_pod
from cnn_jobs.system.redaction import printable, redact

TEXT, JSON, AUTO = "text", "json", "auto"
FORMATS = (AUTO, TEXT, JSON)
# A printed line that begins with one of these words has that level, any other is information.
_LEVELS = {"error": logging.ERROR, "warning": logging.WARNING}

# Fields that every JSON line gets: task, run_key, attempt, step.
Context = Callable[[], Mapping[str, object]]
_sources: dict[str, Context] = {}
_format = TEXT
_output_may_be_lost = False


def configure(wanted: str = AUTO) -> str:
    """Sends log records, warnings, tracebacks and everything printed through one formatter; returns its format.

    ``auto``: JSON in a pod, unless its output is a terminal. May be called again.
    """
    global _format
    out, err = _original(sys.stdout), _original(sys.stderr)
    _format = (JSON if in_pod() and not out.isatty() else TEXT) if wanted == AUTO else wanted
    # MLflow would add handlers to its loggers.
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(old)
    handler = _Handler(out if _format == JSON else None)
    handler.setFormatter(JsonFormatter(context) if _format == JSON else TextFormatter())
    root.addHandler(handler)
    # Only warnings of libraries, but everything of this package.
    root.setLevel(logging.WARNING)
    logging.getLogger("cnn_jobs").setLevel(logging.INFO)
    if _format == JSON:
        sys.stdout, sys.stderr = _JsonStream(handler, "stdout", out), _JsonStream(handler, "stderr", err)
        atexit.register(sys.stdout.close)
        atexit.register(sys.stderr.close)
        sys.excepthook, threading.excepthook = _log_exception, _log_thread_exception
    else:
        sys.stdout, sys.stderr = _RedactingStream(out), _RedactingStream(err)
        sys.excepthook, threading.excepthook = sys.__excepthook__, threading.__excepthook__
    warnings.showwarning = _log_warning
    return _format


def format_of_environment() -> str:
    """The format in ``CNN_JOBS_LOG_FORMAT``; ``auto`` for an unknown one, which ``--log-format`` rejects later."""
    wanted = os.environ.get("CNN_JOBS_LOG_FORMAT", AUTO)
    return wanted if wanted in FORMATS else AUTO


def ignore_lost_output() -> None:
    """From now on output that cannot be written, to a full disk or a closed terminal, is lost and no error."""
    global _output_may_be_lost
    _output_may_be_lost = True


def is_json() -> bool:
    """Whether lines are JSON objects."""
    return _format == JSON


def add_context(name: str, source: Context) -> None:
    """Adds the fields of ``source`` to every JSON line from now on; replaces a source of the same ``name``."""
    _sources[name] = source


def context() -> dict[str, object]:
    """The fields of all sources."""
    return {key: value for source in list(_sources.values()) for key, value in source().items()}


def capture_libraries() -> None:
    """Removes the console handlers that imported libraries, such as torch, gave their loggers."""
    consoles = (sys.stdout, sys.stderr, _original(sys.stdout), _original(sys.stderr))
    for logger in [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]:
        for handler in list(logger.handlers):
            if type(handler) is logging.StreamHandler or getattr(handler, "stream", None) in consoles:
                logger.removeHandler(handler)
                logger.propagate = True


def plain_stdout() -> TextIO:
    """Standard output without redaction, for input of other programs: a manifest's line
    ``automountServiceAccountToken: false`` is no secret."""
    return _original(sys.stdout)


# -- formatters ------------------------------------------------------------------------------------------------------


class JsonFormatter(logging.Formatter):
    """One JSON object (RFC 8259) a record: time (UTC), level, logger, message, the fields of ``context``, the record's
    own ``fields``, and the type and traceback of an exception."""

    def __init__(self, context: Context = dict) -> None:
        super().__init__()
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline."""
        if printed := getattr(record, "json_line", ""):
            return redact(printed)
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
    """``14:03:22 warning: message (mlflow.tracking)``, followed by the traceback of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines, without the last newline."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {level}{_message(record)} ({record.name})"
        if record.exc_info and record.exc_info[0]:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return redact(text)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage().strip()
    except Exception as error:  # a library's arguments do not fit its format string
        return f"{record.msg} {record.args!r} ({type(error).__name__}: {error})"


def _plain(value: Any) -> Any:
    """``value`` as JSON can represent it, without secrets."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {redact(str(name)): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return redact(str(value))


# -- handler, streams and hooks --------------------------------------------------------------------------------------


class _Handler(logging.Handler):
    """Writes to ``stream``; without one to the current ``sys.stderr``, which a progress bar may have replaced."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        # Not logging's handleError: where one line cannot be written, a second one cannot either.
        with contextlib.suppress(Exception):
            stream = self._stream or sys.stderr
            stream.write(self.format(record) + "\n")
            stream.flush()


class _JsonStream(io.TextIOBase):
    """Replaces stdout or stderr: each printed line becomes a record; one that is a JSON object is passed on."""

    encoding, errors = "utf-8", "backslashreplace"

    def __init__(self, handler: _Handler, name: str, original: TextIO) -> None:
        self._handler, self.name, self.original = handler, name, original
        self._thread = threading.local()  # lines of different threads do not mix

    def write(self, text: str) -> int:
        *lines, self._thread.incomplete = (self._incomplete() + text).split("\n")
        for line in lines:
            self._log(line)
        return len(text)

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        line, self._thread.incomplete = self._incomplete(), ""
        self._log(line)

    def _incomplete(self) -> str:
        return getattr(self._thread, "incomplete", "")

    def _log(self, line: str) -> None:
        line = line.rstrip().rpartition("\r")[2]  # the last state of a progress bar
        if not line:
            return
        if _is_json(line):
            self._handler.handle(logging.makeLogRecord({"json_line": line}))
            return
        word, colon, rest = line.partition(": ")
        level = _LEVELS.get(word.strip().lower(), logging.INFO)
        text = rest if colon and level > logging.INFO else line
        record = {"name": self.name, "levelno": level, "levelname": logging.getLevelName(level), "msg": text}
        self._handler.handle(logging.makeLogRecord(record))


@contextlib.contextmanager
def _lost_output() -> Iterator[None]:
    try:
        yield
    except OSError:
        if not _output_may_be_lost:
            raise


class _RedactingStream:
    """A text stream that writes no secrets and, but for a terminal's colours, no control characters; in all else it is
    ``original``."""

    def __init__(self, original: TextIO) -> None:
        self.original, self._colours = original, original.isatty()

    def write(self, text: str) -> int:
        with _lost_output():
            self.original.write(redact(printable(text, colours=self._colours)))
        return len(text)

    def flush(self) -> None:
        with _lost_output():
            self.original.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


def _original(stream: TextIO) -> TextIO:
    """The stream that ``configure`` replaced by ``stream``, if it did."""
    return stream.original if isinstance(stream, _JsonStream | _RedactingStream) else stream


def _is_json(line: str) -> bool:
    if not line.startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _log_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: object, **more: object
) -> None:
    fields = {"category": category.__name__, "place": f"{filename}:{lineno}"}
    text = " ".join(str(message).split())
    logging.getLogger("warnings").warning("%s: %s", category.__name__, text, extra={"fields": fields})


def _log_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("cnn_jobs").critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))


def _log_thread_exception(args: threading.ExceptHookArgs) -> None:
    if args.exc_value:
        _log_exception(args.exc_type, args.exc_value, args.exc_traceback)
