"""Uploads the records in a run's folder that MLflow lacks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cnn_jobs.errors import DamagedJournalError, NotShippedError, UserError
from cnn_jobs.tracking.client import TrackingClient
from cnn_jobs.tracking.connection import Backoff, OutageError, run_url
from cnn_jobs.tracking.run_folder import JOURNAL, RunFolder
from cnn_jobs.tracking.run_status import RunStatus
from cnn_jobs.tracking.uploader import Uploader


@dataclass(frozen=True)
class Replayed:
    """The result of a replay. ``status`` is "" where the journal has no end of the run."""

    run_key: str
    run_id: str
    url: str
    status: str
    records: int
    rejected: str
    damage: tuple[str, ...]


def replay(path: Path, uri: str, deadline_s: float) -> Replayed:
    """Sends everything that the server at ``uri`` has not acknowledged, then the status; trains nothing.

    Raises ``UserError`` (exit 2) where ``path`` holds no journal, ``AnotherAttemptError`` where the run is in use or
    was continued elsewhere, ``NotShippedError`` (exit 75) where the server does not answer in time.
    """
    if not (path / JOURNAL).is_file():
        raise UserError(f"{path}: holds no {JOURNAL}; name the folder of a run, DIR/<run_key>")
    client = TrackingClient(uri)
    with RunFolder(path) as folder:
        summary = folder.summary
        if summary.header is None or summary.mark is None:
            raise DamagedJournalError(f"{path / JOURNAL}: no intact record names its run; nothing was sent")
        uploader = Uploader(path, client, summary.header, summary.mark, replay=True)
        _upload(uploader, summary.status, path, deadline_s)
        assert uploader.run
        return Replayed(
            run_key=summary.header.run_key,
            run_id=uploader.run.run_id,
            url=run_url(uri, uploader.run.experiment_id, uploader.run.run_id),
            status=summary.status.status if summary.status else "",
            records=len(folder.entries),
            rejected=uploader.rejected.summary() if uploader.rejected.count else "",
            damage=tuple(f"{path / JOURNAL}: {each}" for each in folder.journal.damage),
        )


def _upload(uploader: Uploader, status: RunStatus | None, path: Path, deadline_s: float) -> None:
    end, backoff = time.monotonic() + deadline_s, Backoff()
    while True:
        try:
            uploader.round()
            if status:
                uploader.close(status)
            return
        except OutageError as outage:
            if time.monotonic() + backoff.pause_s > end:
                raise NotShippedError(
                    f"{outage}; nothing is lost, {path} keeps the rest: call again", kept=True
                ) from outage
            time.sleep(backoff.next())
