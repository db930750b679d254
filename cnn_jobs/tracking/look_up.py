"""Questions to MLflow before a training, each with a time limit."""

from __future__ import annotations

import queue
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cnn_jobs.tracking import names
from cnn_jobs.tracking.client import OutageError, RemoteRun, TrackingClient
from cnn_jobs.tracking.connection import NO_ANSWER
from cnn_jobs.tracking.ownership import runs_of_key
from cnn_jobs.tracking.records import RunHeader

Result = TypeVar("Result")


def within(budget_s: float, question: Callable[[], Result]) -> Result:
    """The answer to ``question``, asked again over an outage for at most ``budget_s`` seconds.

    Raises ``OutageError`` when the time is up, and whatever else ``question`` raises. A call that hangs does not hold
    up the caller: it is left behind in a thread of its own.
    """
    answers: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()
    end = time.monotonic() + budget_s

    def ask() -> None:
        pause = 0.2
        while True:
            try:
                answers.put((question(), None))
                return
            except OutageError as outage:
                if time.monotonic() + pause > end:
                    answers.put((None, outage))
                    return
                time.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, 10.0)
            except BaseException as error:  # raised again where it was asked
                answers.put((None, error))
                return

    threading.Thread(target=ask, name="mlflow-look-up", daemon=True).start()
    try:
        result, error = answers.get(timeout=budget_s + 0.5)
    except queue.Empty:
        raise OutageError(f"MLflow gave no answer within {budget_s:.0f} s", NO_ANSWER) from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def find_run(remote: TrackingClient, header: RunHeader, budget_s: float) -> RemoteRun | None:
    """The key's run, the oldest of twins; ``None`` where MLflow says that there is none. Raises as ``within``."""
    remote.load()
    runs = within(budget_s, lambda: runs_of_key(remote, header))
    return runs[0] if runs else None


def fetch_checkpoints(remote: TrackingClient, run: RemoteRun, folder: Path, budget_s: float) -> list[Path]:
    """Downloads what the run's artifacts hold of its latest state, into a new folder below ``folder``."""
    target = Path(tempfile.mkdtemp(prefix="fetched-", dir=folder))

    def fetch() -> list[Path]:
        there = set(remote.artifacts(run.run_id, "checkpoints"))
        return [remote.download(run.run_id, slot, target) for slot in names.CHECKPOINT_SLOTS if slot in there]

    return within(budget_s, fetch)
