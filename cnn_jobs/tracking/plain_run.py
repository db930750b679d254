"""A run that trains nothing itself: a folder, a journal and a recorder, without look-up and checkpoints."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

from cnn_jobs.lock import RunLock
from cnn_jobs.tracking.cursor import CursorFile
from cnn_jobs.tracking.joining import check_role
from cnn_jobs.tracking.journal import Journal
from cnn_jobs.tracking.left_behind import attempt_record, read_left_behind
from cnn_jobs.tracking.recorder import JournalRecorder
from cnn_jobs.tracking.records import AttemptMark, RunHeader
from cnn_jobs.tracking.remote import Remote
from cnn_jobs.tracking.shipper import JOURNAL


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
        remote = Remote(tracking_uri)
        self._lock = RunLock(folder)
        try:
            self._journal = Journal(folder / JOURNAL, after=CursorFile(folder).highest())
            left = read_left_behind(self._journal.entries)
            number = left.mark.number + 1 if left.mark else 1
            mark = AttemptMark(uuid.uuid4().hex[:12], number, left.attempt_ids, replaces_any, reopens, revives)
            if left.header:
                check_role(header.run_key, left.header.tags, header.tags.get("cnn_jobs.role", ""), str(folder))
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
