"""The real command in children of a process that has imported everything and run nothing.

A new process needs five seconds to import torch and MLflow; a test that kills dozens of runs forks them instead, with
the fork server of ``multiprocessing``.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["mlflow", "torch", "torch._dynamo", "torch._inductor.config"]
    + [f"cnn_jobs.{name}" for name in ("cli.train", "runs.train", "runs.series", "runs.reproduce")]
)
# ``multiprocessing`` is not safe in threads: only one at a time starts a child or reads exit codes.
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Completed:
    """A child that has ended: ``code`` is its exit code, or minus the signal that killed it.

    Times are monotonic; ``signalled_at``: when it sent itself a signal, if it did.
    """

    code: int
    stdout: str
    stderr: str
    seconds: float
    ended_at: float
    signalled_at: float | None = None

    @property
    def seconds_after_signal(self) -> float:
        """From the signal to the end."""
        assert self.signalled_at is not None
        return self.ended_at - self.signalled_at


class Child:
    """A running command."""

    def __init__(self, process: Any, folder: Path) -> None:
        self.pid: int = process.pid
        self._process, self._folder, self._began = process, folder, time.monotonic()

    def wait(self, timeout: float = 120.0) -> Completed:
        """Waits until it ends; kills it and raises ``AssertionError`` after ``timeout`` seconds."""
        end = time.monotonic() + timeout
        while (code := self._exit_code()) is None:
            if time.monotonic() > end:
                self._process.kill()
                raise AssertionError(f"child {self.pid} took over {timeout:.0f} s:\n{self.text('stderr')}")
            time.sleep(0.01)
        now = time.monotonic()
        return Completed(code, self.text("stdout"), self.text("stderr"), now - self._began, now, self.signalled_at)

    def _exit_code(self) -> int | None:
        with _LOCK:
            code: int | None = self._process.exitcode
            return code

    @property
    def signalled_at(self) -> float | None:
        """When it sent itself a signal, if it did."""
        text = self.text("signalled")
        return float(text) if text else None

    def text(self, name: str) -> str:
        """What it has written so far, by the name of the file: ``stdout`` or ``stderr``."""
        path = self._folder / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def start(
    folder: Path, argv: Sequence[object], env: Mapping[str, str], hook: str = "", hook_args: Sequence[Any] = ()
) -> Child:
    """Starts ``cnn-jobs argv`` in a new folder below ``folder``.

    ``hook``: a function of ``tests.helpers.hooks``, or ``module:function``, called in the child before the command.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(dir=folder))
    arguments = (own, [str(each) for each in argv], dict(env), hook, list(hook_args))
    process = _CONTEXT.Process(target=_run, args=arguments, daemon=True)
    with _LOCK, mock.patch.dict(os.environ, MLFLOW_DISABLE_TELEMETRY="true"):  # it would start a thread in the server
        process.start()
    return Child(process, own)


def _run(folder: Path, argv: list[str], env: dict[str, str], hook: str, hook_args: list[Any]) -> None:
    """The child: as the command, with its output in files."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o644), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.chdir(folder)
    for name in list(os.environ):
        if name.startswith(("CNN_JOBS_", "MLFLOW_", "JOB_")):
            del os.environ[name]
    os.environ.update(env)
    code = 1
    try:
        from cnn_jobs.tracking.connection import configure_client

        configure_client()
        sys.argv = ["cnn-jobs", *argv]
        if hook:
            module, _, function = hook.rpartition(":")
            getattr(importlib.import_module(module or "tests.helpers.hooks"), function)(*hook_args)
        from cnn_jobs.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)  # as the interpreter does
    finally:
        with contextlib.suppress(ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
