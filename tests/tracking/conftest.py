"""A recorder with a folder of its own, and a look at what MLflow has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cnn_jobs.tracking import run_status
from cnn_jobs.tracking.document_run import PlainRun
from cnn_jobs.tracking.recorder import JournalRecorder
from cnn_jobs.tracking.records import RunHeader, now_ms


def header(key: str = "key", **changes: Any) -> RunHeader:
    """A run of the experiment ``tests``."""
    values = {"experiment": "tests", "run_key": key, "name": "a run", "start_ms": now_ms(), "tags": {}, **changes}
    return RunHeader(**values)


@contextlib.contextmanager
def recording(uri: str, folder: Path, key: str = "key", **changes: Any) -> Iterator[JournalRecorder]:
    """A recorder that is started, and let go at the end."""
    run = PlainRun(folder / key, uri, header(key, **changes))
    try:
        run.recorder.start(contact_s=30)
        yield run.recorder
    finally:
        run.close()


def finish(recorder: JournalRecorder, deadline_s: float = 30.0) -> bool:
    """The good end."""
    return recorder.finish(run_status.finished(), deadline_s)


def client(uri: str) -> Any:
    """MLflow's own."""
    from mlflow import MlflowClient

    return MlflowClient(uri)


def rows(uri: str, run_id: str, key: str = "train/loss") -> list[tuple[int, float]]:
    """(step, value) of a metric, as MLflow has them."""
    return sorted((point.step, point.value) for point in client(uri).get_metric_history(run_id, key))
