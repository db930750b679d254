"""A run's folder in the state directory: its lock, its open journal, and the records of earlier attempts."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from cnn_jobs.system.lock import RunLock
from cnn_jobs.tracking import names
from cnn_jobs.tracking.delivery import CursorFile
from cnn_jobs.tracking.journal import Entry, Journal
from cnn_jobs.tracking.outbox import Outbox
from cnn_jobs.tracking.records import AttemptMark, RunHeader
from cnn_jobs.tracking.run_status import RunStatus

JOURNAL, COST_FILE = "journal.jsonl", "ledger.json"
# The last record before the first step: where it is, all of those are.
START_COMPLETE = names.NETWORK


class RunFolder:
    """Holds the lock on a run's folder, and its journal, until ``close``."""

    def __init__(self, path: Path) -> None:
        """Creates the folder where it is missing. Raises ``AnotherAttemptError`` where another process uses it."""
        self.path = path
        with ExitStack() as opened:
            lock = RunLock(path)
            opened.callback(lock.release)
            for leftover in path.rglob("*.partial"):  # of writes that a kill interrupted
                leftover.unlink(missing_ok=True)
            self.journal = opened.enter_context(Journal(path / JOURNAL, after=CursorFile(path).highest()))
            self.entries = self.journal.entries
            self.summary = summarize(self.entries)
            Outbox(path).sweep(entry.content for entry in self.entries if entry.kind == "artifact")
            self._opened = opened.pop_all()

    def continued_header(self, header: RunHeader) -> RunHeader:
        """The header of the run's earlier attempts, with the present experiment; ``header`` itself for a new run.

        Raises ``RunMismatchError`` where the folder belongs to another run.
        """
        if self.summary.header is None:
            return header
        header.check_same(self.summary.header.tags, str(self.path))
        return replace(self.summary.header, experiment=header.experiment)

    def next_mark(self, *, after: int = 0, **permissions: bool) -> AttemptMark:
        """A new attempt, numbered above those of this folder and ``after``; ``permissions`` as in ``AttemptMark``."""
        number = max(self.summary.number, after) + 1
        return AttemptMark(uuid.uuid4().hex[:12], number, self.summary.attempt_ids, **permissions)

    def begin_attempt(self, header: RunHeader, mark: AttemptMark, from_step: int = 0) -> None:
        """Records that an attempt begins, at optimiser step ``from_step``."""
        self.journal.append("attempt", attempt_record(header, mark, from_step))

    def close(self) -> None:
        """Closes the journal and releases the lock."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def attempt_record(header: RunHeader, mark: AttemptMark, from_step: int = 0) -> dict[str, Any]:
    """The content of an ``attempt`` entry. It has the whole header, so that a damaged first line loses nothing."""
    reopens = {"reopens": True} if mark.reopens else {}
    return {"id": mark.id, "number": mark.number, "from_step": from_step, **reopens, "header": asdict(header)}


@dataclass(frozen=True)
class JournalSummary:
    """What a journal records about its run; ``mark`` and ``status`` are those of its last attempt."""

    header: RunHeader | None = None
    mark: AttemptMark | None = None
    status: RunStatus | None = None
    attempt_ids: frozenset[str] = frozenset()
    started: bool = False
    steps: int = 0  # of the last attempt

    @property
    def number(self) -> int:
        """Of the last attempt, 0 for none."""
        return self.mark.number if self.mark else 0

    @property
    def trained(self) -> bool:
        """Whether the training is complete, and at most the upload is not."""
        return self.status is not None and self.status.status == "FINISHED"


def summarize(entries: Sequence[Entry]) -> JournalSummary:
    """Reads the entries once, from first to last."""
    header: RunHeader | None = None
    mark: AttemptMark | None = None
    status: RunStatus | None = None
    finished: RunStatus | None = None
    ids: set[str] = set()
    started, first, last = False, 0, 0
    for entry in entries:
        match entry.kind:
            case "attempt":
                latest = RunHeader(**entry.content["header"])
                # A run may be continued in another experiment; all else stays as it began.
                header = replace(header, experiment=latest.experiment) if header else latest
                # Attempts of one folder follow one another, by its lock.
                mark = AttemptMark(entry.content["id"], entry.content["number"], frozenset(ids))
                ids.add(mark.id)
                if entry.content.get("reopens"):
                    finished = None
                # An attempt after the end only uploads; however it ends, the training is complete.
                status = finished
                first = last = int(entry.content.get("from_step", 0))
            case "metrics" if names.TRAIN_LOSS in entry.content["values"]:
                last = max(last, entry.content["step"])
                status = finished = None  # trained again
            case "ending":
                status = finished or RunStatus(**entry.content)
                finished = status if status.status == "FINISHED" else None
            case "artifact" if entry.content["to"] == START_COMPLETE:
                started = True
    return JournalSummary(header, mark, status, frozenset(ids), started, last - first)


def latest_metrics(entries: Sequence[Entry]) -> dict[str, float]:
    """The latest value of each metric, by step."""
    latest: dict[str, tuple[int, float]] = {}
    for entry in entries:
        if entry.kind == "metrics":
            for key, value in entry.content["values"].items():
                if key not in latest or entry.content["step"] >= latest[key][0]:
                    latest[key] = (entry.content["step"], value)
    return {key: value for key, (_, value) in latest.items()}
