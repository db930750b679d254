"""All that this process writes goes through here: as JSON, a line a record, or as text; never with a secret in it."""

from __future__ import annotations

import atexit
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
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from cnn_jobs.system.environment import in_pod
from cnn_jobs.system.redaction import redact

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


TEXT, JSON, AUTO = "text", "json", "auto"
FORMATS = (AUTO, TEXT, JSON)
# How a line that was printed says what it is; without such a word it is information.
_LEVELS = {"error": logging.ERROR, "warning": logging.WARNING}

_current = TEXT
_facts: dict[str, Context] = {}


def configure(wanted: str = AUTO) -> str:
    """Sends log records, warnings, tracebacks and whatever is printed through one formatter; returns its format.

    ``auto``: JSON in a pod, unless somebody sits at a terminal there. May be called again.
    """
    global _current
    out, err = _behind(sys.stdout), _behind(sys.stderr)
    _current = (JSON if in_pod() and not out.isatty() else TEXT) if wanted == AUTO else wanted
    # MLflow would put handlers of its own on its loggers.
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(old)
    handler = _Handler(out if _current == JSON else None)
    handler.setFormatter(JsonFormatter(context) if _current == JSON else TextFormatter())
    root.addHandler(handler)
    # Of others what is worth a warning; of this package all that it says.
    root.setLevel(logging.WARNING)
    logging.getLogger("cnn_jobs").setLevel(logging.INFO)
    if _current == JSON:
        sys.stdout, sys.stderr = _JsonStream(handler, "stdout", out), _JsonStream(handler, "stderr", err)
        atexit.register(sys.stdout.close)
        atexit.register(sys.stderr.close)
        sys.excepthook, threading.excepthook = _log_exception, _log_thread_exception
    else:
        sys.stdout, sys.stderr = _Redacting(out), _Redacting(err)
        sys.excepthook, threading.excepthook = sys.__excepthook__, threading.__excepthook__
    warnings.showwarning = _log_warning
    return _current


def format_of_environment() -> str:
    """What ``CNN_JOBS_LOG_FORMAT`` asks for; what it cannot mean is refused later, by the option of that name."""
    wanted = os.environ.get("CNN_JOBS_LOG_FORMAT", AUTO)
    return wanted if wanted in FORMATS else AUTO


def is_json() -> bool:
    """Whether lines are JSON objects."""
    return _current == JSON


def capture_libraries() -> None:
    """Takes from libraries that are imported by now the handlers that they gave their loggers (torch does)."""
    for logger in list(logging.root.manager.loggerDict.values()):
        for handler in [each for each in getattr(logger, "handlers", ()) if _writes_to_console(each)]:
            assert isinstance(logger, logging.Logger)
            logger.removeHandler(handler)
            logger.propagate = True


def plain_stdout() -> TextIO:
    """Standard output as the process was given it, for what other programs read: a manifest says
    ``automountServiceAccountToken: false``, which is no secret."""
    return _behind(sys.stdout)


def _behind(stream: TextIO) -> TextIO:
    """The stream as it was before this module came."""
    return stream.behind if isinstance(stream, _JsonStream | _Redacting) else stream


def _writes_to_console(handler: logging.Handler) -> bool:
    stream = getattr(handler, "stream", None)
    console = (sys.stdout, sys.stderr, _behind(sys.stdout), _behind(sys.stderr))
    return type(handler) is logging.StreamHandler or any(stream is each for each in console)


def add_context(name: str, source: Context) -> None:
    """From now on every JSON line has what ``source`` gives; one of the same ``name`` takes its place."""
    _facts[name] = source


def context() -> dict[str, object]:
    """What all sources of context say."""
    return {key: value for source in list(_facts.values()) for key, value in source().items()}


class _Handler(logging.Handler):
    """Writes to a stream; without one to ``sys.stderr`` as it is at the time, where a progress bar may sit."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        """One record, whole: several threads write."""
        try:
            stream = self._stream or sys.stderr
            stream.write(self.format(record) + "\n")
            stream.flush()
        except Exception:  # as logging does: a log that cannot be written does not stop what it tells of
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Nothing: where a line could not be written, a second one could not either."""

    def pass_on(self, line: str) -> None:
        """A line that is JSON already."""
        assert self._stream
        with self.lock or threading.Lock():
            self._stream.write(redact(line) + "\n")
            self._stream.flush()


class _JsonStream:
    """In place of stdout or stderr: each line that is printed becomes a record; one that is a JSON object stays one."""

    encoding, errors, newlines, closed = "utf-8", "backslashreplace", None, False

    def __init__(self, handler: _Handler, name: str, stream: TextIO) -> None:
        self._handler, self.name, self.behind = handler, name, stream
        self._started = threading.local()

    def write(self, text: str) -> int:
        """Takes any part of a line; a thread's lines do not mix with another's."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        *lines, rest = (getattr(self._started, "text", "") + text).split("\n")
        self._started.text = rest
        for line in lines:
            self._tell(line)
        return len(text)

    def flush(self) -> None:
        """A line that has no end yet waits for it."""

    def isatty(self) -> bool:
        """Never: nobody wants colours in JSON."""
        return False

    def writable(self) -> bool:
        """Always."""
        return True

    def readable(self) -> bool:
        """Never."""
        return False

    def fileno(self) -> int:
        """There is no file below."""
        raise io.UnsupportedOperation("fileno")

    def close(self) -> None:
        """Tells what is left of a line."""
        if rest := getattr(self._started, "text", ""):
            self._started.text = ""
            self._tell(rest)

    def _tell(self, line: str) -> None:
        line = line.rstrip().rpartition("\r")[2]  # of a progress bar its last state
        if not line:
            return
        if _is_json(line):
            self._handler.pass_on(line)
            return
        word, colon, rest = line.partition(": ")
        level = _LEVELS.get(word.strip().lower(), logging.INFO)
        text = rest if colon and level > logging.INFO else line
        record = {"name": self.name, "levelno": level, "levelname": logging.getLevelName(level), "msg": text}
        self._handler.handle(logging.makeLogRecord(record))


class _Redacting:
    """A stream that shows no secrets; in all else the stream behind it."""

    def __init__(self, stream: TextIO) -> None:
        self.behind = stream

    def write(self, text: str) -> int:
        """As the stream's own; raises ``TypeError`` for bytes."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self.behind.write(redact(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.behind, name)


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
    first = " ".join(str(message).split())
    logging.getLogger("warnings").warning("%s: %s", category.__name__, first, extra={"fields": fields})


def _log_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("cnn_jobs").critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))


def _log_thread_exception(args: threading.ExceptHookArgs) -> None:
    if args.exc_value:
        _log_exception(args.exc_type, args.exc_value, args.exc_traceback)
