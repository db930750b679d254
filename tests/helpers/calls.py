"""The command line, called in this process."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass

import pytest

from cnn_jobs.cli import main


@dataclass(frozen=True)
class Called:
    """Exit code and output of a call."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The only line on stderr."""
        (line,) = self.stderr.splitlines()
        return line


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Called:
    """``cnn-jobs arguments``, including how ``main`` reports an error."""
    monkeypatch.setattr("sys.argv", ["cnn-jobs", *map(str, arguments)])
    monkeypatch.setattr("cnn_jobs.cli.log_format.configure", lambda form: None)
    monkeypatch.setattr("cnn_jobs.cli.dump_stacks_on_signal", lambda: None)
    monkeypatch.setattr("cnn_jobs.cli.exit_on_sigterm", lambda: None)
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with redirect_stdout(out), redirect_stderr(err), _restored_handlers():
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
    return Called(code, out.getvalue(), err.getvalue())


@contextmanager
def _restored_handlers() -> Iterator[None]:
    """Undoes what ``StopRequest.install`` does, which only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers, hook = (
        {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)},
        threading.excepthook,
    )
    try:
        yield
    finally:
        threading.excepthook = hook
        for number, handler in handlers.items():
            signal.signal(number, handler)
