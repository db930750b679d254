"""What earlier attempts left in a run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cnn_jobs.tracking import names
from cnn_jobs.tracking.journal import Entry
from cnn_jobs.tracking.records import AttemptMark, Ending, RunHeader

# The last of what is recorded before the first step: where it is, all of that is.
START_COMPLETE = names.NETWORK


@dataclass(frozen=True)
class JournalSummary:
    """A journal's own account of the run: ``mark`` and ``ending`` are those of its last attempt."""

    header: RunHeader | None = None
    mark: AttemptMark | None = None
    ending: Ending | None = None
    attempt_ids: frozenset[str] = frozenset()
    started: bool = False
    steps: int = 0  # of the last attempt, as its journal shows

    @property
    def number(self) -> int:
        """Of the last attempt, 0 for none."""
        return self.mark.number if self.mark else 0

    @property
    def trained(self) -> bool:
        """Whether the training is done and only its delivery may not be."""
        return self.ending is not None and self.ending.status == "FINISHED"


def summarize(entries: Sequence[Entry]) -> JournalSummary:
    """Reads the entries once, from the first to the last."""
    header: RunHeader | None = None
    mark: AttemptMark | None = None
    ending: Ending | None = None
    finished: Ending | None = None
    ids: set[str] = set()
    started, first, last = False, 0, 0
    for entry in entries:
        match entry.kind:
            case "attempt":
                latest = RunHeader(**entry.content["header"])
                # A run may be gone on with in another experiment; all else is as it began.
                header = replace(header, experiment=latest.experiment) if header else latest
                # Attempts of one folder follow one another: its lock sees to that.
                mark = AttemptMark(entry.content["id"], entry.content["number"], frozenset(ids))
                ids.add(mark.id)
                if entry.content.get("reopens"):
                    finished = None
                # One that comes after the end has only to deliver; however that one ends, the training is finished.
                ending = finished
                first = last = int(entry.content.get("from_step", 0))
            case "metrics" if names.TRAIN_LOSS in entry.content["values"]:
                last = max(last, entry.content["step"])
                ending = finished = None  # trained anew
            case "ending":
                ending = finished or Ending(**entry.content)
                finished = ending if ending.status == "FINISHED" else None
            case "artifact" if entry.content["to"] == START_COMPLETE:
                started = True
    return JournalSummary(header, mark, ending, frozenset(ids), started, last - first)


def attempt_record(header: RunHeader, mark: AttemptMark, from_step: int = 0) -> dict[str, Any]:
    """The content of an ``attempt`` entry: it carries the whole header, so that a damaged first line loses nothing.

    ``from_step``: the optimiser step that the attempt goes on from.
    """
    reopens = {"reopens": True} if mark.reopens else {}
    return {"id": mark.id, "number": mark.number, "from_step": from_step, **reopens, "header": asdict(header)}


def last_metrics(entries: Sequence[Entry]) -> dict[str, float]:
    """The latest value of each metric, by step."""
    latest: dict[str, tuple[int, float]] = {}
    for entry in entries:
        if entry.kind == "metrics":
            for key, value in entry.content["values"].items():
                if key not in latest or entry.content["step"] >= latest[key][0]:
                    latest[key] = (entry.content["step"], value)
    return {key: value for key, (_, value) in latest.items()}
