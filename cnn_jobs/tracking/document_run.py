"""MLflow runs that train nothing: the parent of a series, and documents such as a report or pictures."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from cnn_jobs.system.environment import in_pod
from cnn_jobs.system.files import make_folder
from cnn_jobs.tracking import names
from cnn_jobs.tracking.client import TrackingClient
from cnn_jobs.tracking.recorder import FLUSH_TIMEOUT_S, JournalRecorder
from cnn_jobs.tracking.records import RunHeader, now_ms
from cnn_jobs.tracking.run_folder import RunFolder

DEADLINE_S = 60.0


def open_recorder(folder: RunFolder, tracking_uri: str, header: RunHeader, **permissions: bool) -> JournalRecorder:
    """A recorder for a run without training, look-up and checkpoints; ``permissions`` as in ``AttemptMark``.

    Raises ``RunMismatchError`` where the folder belongs to another run.
    """
    client = TrackingClient(tracking_uri)
    header, mark = folder.continued_header(header), folder.next_mark(**permissions)
    folder.begin_attempt(header, mark)
    return JournalRecorder(folder, client, header, mark)


def log_documents(
    task: str,
    name: str,
    write: Callable[[Path], object],
    *,
    tracking_uri: str,
    experiment: str,
    state_dir: Path,
    tags: Mapping[str, str] | None = None,
    params: Mapping[str, object] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Creates a FINISHED run with the files that ``write`` puts into a folder; returns its URL, or id for a database.

    Its role is ``document``, so that no comparison of trainings counts it. Raises ``NotShippedError`` where MLflow does
    not take it within a minute: exit code 75, and ``cnn-jobs replay`` sends it later; in a pod, whose state directory
    is lost, exit code 1, and another pod makes it again.
    """
    key = uuid.uuid4().hex[:16]
    own = {names.ROLE: names.DOCUMENT, names.TASK: task, names.SOURCE_NAME: "cnn-jobs", **(tags or {})}
    with RunFolder(state_dir / key) as folder:
        recorder = open_recorder(folder, tracking_uri, RunHeader(experiment, key, name, now_ms(), own))
        try:
            recorder.start()
            files = make_folder(folder.path / "artifacts")
            write(files)
            if params:
                recorder.params(params)
            if metrics:
                recorder.metrics(metrics, 0)
            recorder.artifact(files, "")
            recorder.deliver(f"run {name} is complete", DEADLINE_S, kept=lambda: not in_pod())
        except BaseException as error:
            recorder.fail(error, FLUSH_TIMEOUT_S)
            raise
        where = recorder.url or recorder.run_id
    shutil.rmtree(folder.path)
    return where
