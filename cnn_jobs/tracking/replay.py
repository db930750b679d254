"""What is left of a run in its folder, to MLflow."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cnn_jobs.errors import DamagedJournalError, NotShippedError, UserError
from cnn_jobs.system.files import read_or_empty
from cnn_jobs.system.lock import RunLock
from cnn_jobs.tracking.client import OutageError, TrackingClient
from cnn_jobs.tracking.connection import run_url
from cnn_jobs.tracking.delivery import CursorFile
from cnn_jobs.tracking.journal import Journal
from cnn_jobs.tracking.journal_summary import JournalSummary, summarize
from cnn_jobs.tracking.uploader import JOURNAL, Uploader


@dataclass(frozen=True)
class Replayed:
    """What a replay came to. ``status`` is "" where the journal knows of no end of the run."""

    run_key: str
    run_id: str
    url: str
    status: str
    records: int
    rejected: str
    damage: tuple[str, ...]


def replay(folder: Path, uri: str, deadline_s: float) -> Replayed:
    """Sends everything that the server at ``uri`` has not acknowledged, then the status; trains nothing.

    Raises ``UserError`` (exit 2) where ``folder`` holds no journal, ``AnotherAttemptError`` where the run is under way
    or was continued elsewhere, ``NotShippedError`` (exit 75) where the server stays away.
    """
    if not (folder / JOURNAL).is_file():
        raise UserError(f"{folder}: holds no {JOURNAL}; name the folder of a run, DIR/<run_key>")
    remote = TrackingClient(uri)
    with RunLock(folder), Journal(folder / JOURNAL, after=CursorFile(folder).highest()) as journal:
        damage = tuple(f"{folder / JOURNAL}: {each}" for each in journal.damage)
        entries = journal.entries
        left = summarize(entries)
        if left.header is None or left.mark is None:
            raise DamagedJournalError(f"{folder / JOURNAL}: no whole record says which run it is of; nothing was sent")
        ledger = partial(read_or_empty, folder / "ledger.json")
        shipper = Uploader(folder, remote, left.header, left.mark, replay=True, ledger=ledger)
        _ship(shipper, left, folder, deadline_s)
    assert shipper.run
    return Replayed(
        run_key=left.header.run_key,
        run_id=shipper.run.run_id,
        url=run_url(uri, shipper.run.experiment_id, shipper.run.run_id),
        status=left.ending.status if left.ending else "",
        records=len(entries),
        rejected=shipper.rejected.summary() if shipper.rejected.count else "",
        damage=damage,
    )


def _ship(shipper: Uploader, left: JournalSummary, folder: Path, deadline_s: float) -> None:
    end, pause = time.monotonic() + deadline_s, 0.5
    while True:
        try:
            shipper.round()
            if left.ending:
                shipper.close(left.ending)
            return
        except OutageError as outage:
            if time.monotonic() + pause > end:
                raise NotShippedError(
                    f"{outage}; nothing is lost, {folder} keeps the rest: call again", kept=True
                ) from outage
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 30.0)
