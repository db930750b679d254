"""A run that trains nothing: tables and pictures, kept in MLflow."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from cnn_jobs.errors import CnnJobsError, NotShippedError
from cnn_jobs.system.environment import in_pod
from cnn_jobs.system.files import make_folder
from cnn_jobs.system.lock import RunLock
from cnn_jobs.tracking import names, run_status
from cnn_jobs.tracking.client import TrackingClient
from cnn_jobs.tracking.delivery import CursorFile
from cnn_jobs.tracking.journal import Journal
from cnn_jobs.tracking.journal_summary import attempt_record, summarize
from cnn_jobs.tracking.ownership import check_role
from cnn_jobs.tracking.recorder import FLUSH_TIMEOUT_S, JournalRecorder
from cnn_jobs.tracking.records import AttemptMark, RunHeader, now_ms
from cnn_jobs.tracking.uploader import JOURNAL


class PlainRun:
    """A recorder with what it stands on. ``close`` it, however it ended."""

    def __init__(
        self,
        folder: Path,
        tracking_uri: str,
        header: RunHeader,
        *,
        replaces_any: bool = False,
        reopens: bool = False,
        revives: bool = False,
    ) -> None:
        """``replaces_any``, ``reopens``, ``revives``: see ``AttemptMark``. Raises ``AnotherAttemptError`` where another
        process has the folder, ``CheckpointMismatchError`` where it is of something else."""
        remote = TrackingClient(tracking_uri)
        self._lock = RunLock(folder)
        try:
            self._journal = Journal(folder / JOURNAL, after=CursorFile(folder).highest())
            left = summarize(self._journal.entries)
            number = left.mark.number + 1 if left.mark else 1
            mark = AttemptMark(uuid.uuid4().hex[:12], number, left.attempt_ids, replaces_any, reopens, revives)
            if left.header:
                check_role(header.run_key, left.header.tags, header.tags.get(names.ROLE, ""), str(folder))
                header = replace(left.header, experiment=header.experiment)
            self._journal.append("attempt", attempt_record(header, mark))
        except BaseException:
            self._lock.release()
            raise
        self.recorder = JournalRecorder(folder, remote, self._journal, header, mark)

    def close(self) -> None:
        """Lets go of the journal and the folder."""
        self._journal.close()
        self._lock.release()


CONTACT_S = 5.0
DEADLINE_S = 60.0


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
    """Makes a FINISHED run of the files that ``write`` puts into a folder; returns its URL, or id where it has none.

    Its tag ``cnn_jobs.role`` is ``document``: no comparison of trainings counts it. Raises ``NotShippedError`` where
    MLflow does not take it within a minute: exit code 75, and ``cnn-jobs replay`` sends it later; in a pod, whose state
    directory goes with it, 1, and another pod makes it anew.
    """
    key = uuid.uuid4().hex[:16]
    own = {names.ROLE: "document", names.TASK: task, names.SOURCE_NAME: "cnn-jobs", **(tags or {})}
    folder = state_dir / key
    run = PlainRun(folder, tracking_uri, RunHeader(experiment, key, name, now_ms(), own))
    recorder = run.recorder
    try:
        try:
            recorder.start(CONTACT_S)
            files = make_folder(folder / "artifacts")
            write(files)
            if params:
                recorder.params(params)
            if metrics:
                recorder.metrics(metrics, 0)
            recorder.artifact(files, "")
        except BaseException as error:
            _end_badly(recorder, error)
            raise
        if not recorder.finish(run_status.finished(), DEADLINE_S):
            kept = not in_pod()
            where = f"it is in {folder}" if kept else "it goes with this pod, another one makes it anew"
            late = NotShippedError(f"MLflow lacks part of run {name} ({recorder.outage}); {where}", kept=kept)
            late.run_key = key
            raise late
        where = recorder.url or recorder.run_id
    finally:
        run.close()
    shutil.rmtree(folder)
    return where


def _end_badly(recorder: JournalRecorder, error: BaseException) -> None:
    """Says how it ended; what MLflow answers to that no longer changes the outcome."""
    ending = run_status.ending_of(error)
    if ending is None:
        recorder.abandon()
        return
    with contextlib.suppress(CnnJobsError):
        recorder.finish(ending, FLUSH_TIMEOUT_S)
