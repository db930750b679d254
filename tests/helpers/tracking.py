"""Recorders with a folder of their own, and what MLflow has of their runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cnn_jobs.errors import InterruptedRunError
from cnn_jobs.tracking import run_status
from cnn_jobs.tracking.client import TrackingClient
from cnn_jobs.tracking.document_run import open_recorder
from cnn_jobs.tracking.recorder import JournalRecorder
from cnn_jobs.tracking.records import RunHeader, now_ms
from cnn_jobs.tracking.run_folder import RunFolder

# MLflow 3.17 on SQLAlchemy 2.1: for tests that open a database themselves.
MLFLOW_WARNING = "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"
STOPPED = InterruptedRunError("stopped by SIGTERM")


# -- recording ---------------------------------------------------------------------------------------------------------


def header(key: str = "key", **changes: Any) -> RunHeader:
    """A run of the experiment ``tests``."""
    values = {"experiment": "tests", "run_key": key, "name": "a run", "start_ms": now_ms(), "tags": {}, **changes}
    return RunHeader(**values)


@contextmanager
def recording(uri: str, folder: Path, key: str = "key", **changes: Any) -> Iterator[JournalRecorder]:
    """A started recorder; its folder is released at the end."""
    with RunFolder(folder / key) as run_folder:
        recorder = open_recorder(run_folder, uri, header(key, **changes))
        recorder.start(contact_s=30)
        yield recorder


def finish(recorder: JournalRecorder, deadline_s: float = 30.0) -> bool:
    """Finishes a complete run."""
    return recorder.finish(run_status.finished(), deadline_s)


def finish_after(recorder: JournalRecorder, error: BaseException = STOPPED, deadline_s: float = 30.0) -> bool:
    """Finishes a run that ``error`` ended."""
    status = run_status.status_after(error)
    assert status
    return recorder.finish(status, deadline_s)


def fail_calls(monkeypatch: pytest.MonkeyPatch, name: str, fault: Callable[[], Exception | None]) -> list[str]:
    """Makes a call of ``TrackingClient`` raise what ``fault`` returns, if anything. Returns the names of the calling
    threads."""
    real, threads = getattr(TrackingClient, name), []

    def call(self: TrackingClient, *args: Any) -> Any:
        threads.append(threading.current_thread().name)
        if error := fault():
            raise error
        return real(self, *args)

    monkeypatch.setattr(TrackingClient, name, call)
    return threads


# -- what MLflow has ---------------------------------------------------------------------------------------------------


def client(uri: str) -> Any:
    """MLflow's own client."""
    from mlflow import MlflowClient

    return MlflowClient(uri)


def runs_in(uri: str, experiment: str = "cnn-jobs", key: str = "") -> list[Any]:
    """The runs of an experiment, or those with this run key; none where the experiment does not exist."""
    found = client(uri).get_experiment_by_name(experiment)
    condition = f"tags.`cnn_jobs.run_key` = '{key}'" if key else ""
    return list(client(uri).search_runs([found.experiment_id], condition)) if found else []


def only_run(uri: str, experiment: str = "cnn-jobs", key: str = "") -> Any:
    """The only one of these runs."""
    (run,) = runs_in(uri, experiment, key)
    return run


def status_of(uri: str, run_id: str) -> tuple[str, str, str]:
    """Status, state and reason of a run."""
    run = client(uri).get_run(run_id)
    return run.info.status, run.data.tags["cnn_jobs.state"], run.data.tags.get("cnn_jobs.reason", "")


def rows(uri: str, run_id: str, key: str = "train/loss") -> list[tuple[int, float]]:
    """(step, value) of every row of a metric, by step."""
    return sorted((point.step, point.value) for point in client(uri).get_metric_history(run_id, key))


def fetch(uri: str, run_id: str, folder: Path) -> Path:
    """Downloads all artifacts of a run into a new folder; returns it."""
    folder.mkdir()
    client(uri).download_artifacts(run_id, "", str(folder))
    return folder
