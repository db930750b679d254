"""The real command in children of a process that has imported everything and run nothing.

A new process needs five seconds to import torch and MLflow; a test that kills dozens of runs forks them instead. The
fork server is a separate process: pytest's has run torch, whose threads do not survive a fork.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Completed:
    """A child that has ended: ``code`` is its exit status, or minus the signal that killed it.

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

    def __init__(self, server: ForkServer, pid: int, folder: Path) -> None:
        self.pid = pid
        self._server, self._folder, self._began = server, folder, time.monotonic()

    def wait(self, timeout: float = 120.0) -> Completed:
        """Waits until it ends; kills it and raises ``AssertionError`` after ``timeout`` seconds."""
        try:
            code = self._server.result(self.pid, timeout)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            raise AssertionError(f"child {self.pid} took over {timeout:.0f} s:\n{self.text('stderr')}") from None
        now = time.monotonic()
        return Completed(code, self.text("stdout"), self.text("stderr"), now - self._began, now, self.signalled_at)

    @property
    def signalled_at(self) -> float | None:
        """When it sent itself a signal, if it did."""
        text = self.text("signalled")
        return float(text) if text else None

    def text(self, name: str) -> str:
        """What it has written so far, by the name of the file: ``stdout`` or ``stderr``."""
        path = self._folder / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


class ForkServer:
    """Starts children; ``start`` may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._codes: dict[int, int] = {}
        self._changed = threading.Condition()
        command = [sys.executable, "-m", "tests.helpers.forkserver"]
        root = Path(__file__).resolve().parents[2]
        self._process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._pids: list[int] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def start(
        self, argv: Sequence[object], env: Mapping[str, str], *, hook: str = "", hook_args: Sequence[Any] = ()
    ) -> Child:
        """Starts ``cnn-jobs argv``; ``hook``, as ``module:function``, is called in the child before the command."""
        with self._changed:
            self._count += 1
            number = self._count  # another thread may increment it while this one waits
            folder = self._folder / f"child-{number}"
            folder.mkdir(parents=True)
            order = {
                "argv": [str(word) for word in argv],
                "env": dict(env),
                "folder": str(folder),
                "hook": hook,
                "hook_args": list(hook_args),
            }
            assert self._process.stdin
            self._process.stdin.write(json.dumps(order) + "\n")
            if not self._changed.wait_for(lambda: len(self._pids) >= number, timeout=60):
                raise AssertionError("the fork server does not answer")
            return Child(self, self._pids[number - 1], folder)

    def run(self, argv: Sequence[object], env: Mapping[str, str], **settings: Any) -> Completed:
        """``start`` and ``wait``."""
        return self.start(argv, env, **settings).wait()

    def result(self, pid: int, timeout: float) -> int:
        """Exit status of a child. Raises ``TimeoutError``."""
        with self._changed:
            if not self._changed.wait_for(lambda: pid in self._codes, timeout=timeout):
                raise TimeoutError(pid)
            return self._codes[pid]

    def close(self) -> None:
        """Ends the server; the caller ends children that still run."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._thread.join(timeout=10)
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            event, pid, *rest = line.split()
            with self._changed:
                if event == "started":
                    self._pids.append(int(pid))
                else:
                    self._codes[int(pid)] = int(rest[0])
                self._changed.notify_all()


@contextlib.contextmanager
def fork_server(folder: Path) -> Iterator[ForkServer]:
    """A fork server within the context."""
    server = ForkServer(folder)
    try:
        yield server
    finally:
        server.close()


# -- the server process ------------------------------------------------------------------------------------------------


MODULES = ("mlflow", "torch", "torch._dynamo", "torch._inductor.config")
MODULES += tuple(f"cnn_jobs.{name}" for name in ("cli.train", "runs.train", "runs.series", "runs.reproduce"))


def _serve() -> None:
    # As the command does before it imports torch.
    from cnn_jobs.system.process import keep_freed_memory, limit_spinning

    limit_spinning()
    keep_freed_memory()
    from cnn_jobs.tracking.connection import configure_client

    configure_client()
    for name in MODULES:
        importlib.import_module(name)
    lock = threading.Lock()

    def write(line: str) -> None:
        with lock:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(order)
        write(f"started {pid}")
        threading.Thread(target=_reap, args=(pid, write), daemon=True).start()


def _reap(pid: int, write: Callable[[str], None]) -> None:
    _, status = os.waitpid(pid, 0)
    write(f"ended {pid} {os.waitstatus_to_exitcode(status)}")


def _child(order: dict[str, Any]) -> None:
    folder = Path(order["folder"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o644)
        os.dup2(descriptor, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # New objects: another thread of the server may have held the old ones' locks at the fork.
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.chdir(folder)
    for name in list(os.environ):
        if name.startswith(("CNN_JOBS_", "MLFLOW_", "JOB_")):
            del os.environ[name]
    os.environ.update(order["env"])
    code = 1
    try:
        from cnn_jobs.tracking.connection import configure_client

        configure_client()
        sys.argv = ["cnn-jobs", *order["argv"]]
        if order["hook"]:
            module, _, function = order["hook"].partition(":")
            getattr(importlib.import_module(module), function)(*order["hook_args"])
        from cnn_jobs.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)  # as the interpreter does
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
