"""The comparison report, from arguments to files and their MLflow run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from cnn_jobs import __version__
from cnn_jobs.errors import UserError
from cnn_jobs.report.chapters import Facts, build_document
from cnn_jobs.report.document import Document, clean
from cnn_jobs.report.formats import FILE_NAMES, FORMATS, render
from cnn_jobs.report.groups import Section, group_runs
from cnn_jobs.system.files import write_bytes
from cnn_jobs.system.redaction import without_password
from cnn_jobs.tracking import names
from cnn_jobs.tracking.document_run import log_documents
from cnn_jobs.tracking.run_reader import Aside, RunReader

# Called with what is being read, how many are done, and how many there are.
Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """Which runs to report, and where to. ``since_ms``: only runs started then or later; no ``tasks``: all."""

    tracking_uri: str
    experiment: str
    tasks: tuple[str, ...] = ()
    since_ms: int = 0
    compare: tuple[tuple[str, str], ...] = ()
    out: Path
    formats: tuple[str, ...] = FORMATS
    log: bool = True
    state_dir: Path


@dataclass(frozen=True)
class ReportResult:
    """``aside``: runs that do not count; ``where``: the MLflow run, "" if it was not logged."""

    document: Document
    sections: Sequence[Section]
    aside: Sequence[Aside]
    files: Sequence[Path]
    where: str


def make_report(request: ReportRequest, progress: Progress) -> ReportResult:
    """Reads and compares runs, writes files to ``request.out`` and, if requested, logs them to an MLflow run.

    Raises ``UserError`` (exit 2) if there is nothing to report, ``TrackingError`` if MLflow does not answer.
    """
    reader = RunReader(request.tracking_uri)
    progress("listing runs", 0, 1)
    found = reader.experiment(request.experiment, request.since_ms)
    sections, aside = group_runs([run for run in found.runs if not request.tasks or run.task in request.tasks])
    if not sections:
        raise UserError(_nothing_to_report(request, aside))
    sections = _complete(reader, sections, progress)
    since = datetime.fromtimestamp(request.since_ms / 1000, UTC).strftime("since %Y-%m-%d %H:%M UTC")
    facts = Facts(
        experiment=request.experiment,
        where=without_password(request.tracking_uri),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        asked=f"selected: {', '.join(request.tasks) or 'all tasks'}, {since if request.since_ms else 'all times'}",
        others=found.others,
        version=__version__,
    )
    document = build_document(facts, sections, aside, request.compare)
    formats = FORMATS if request.log else request.formats
    contents = render(document, _json_facts(facts, sections, aside), formats)
    left_out = {FILE_NAMES[each] for each in FORMATS if each not in request.formats}
    files = _write({name: content for name, content in contents.items() if name not in left_out}, request.out)
    where = _log(request, document, contents, len(aside)) if request.log else ""
    return ReportResult(document, sections, aside, files, where)


def _complete(reader: RunReader, sections: Sequence[Section], progress: Progress) -> list[Section]:
    """Adds curves and files to the runs that count, and to the first run of each group its picture of mistakes."""
    runs = [run for section in sections for run in section.runs]
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress("reading runs", done, len(runs))

    completed = {run.run_id: run for run in reader.complete(runs, step)}
    for group in (group for section in sections for group in section.groups):
        first = group.run_ids[0]
        completed[first] = reader.with_mistakes(completed[first])
    return [section.with_runs(completed) for section in sections]


def _nothing_to_report(request: ReportRequest, aside: Sequence[Aside]) -> str:
    of = f" of {', '.join(request.tasks)}" if request.tasks else ""
    text = f"experiment '{clean(request.experiment)}' has no finished runs{of}"
    if aside:
        text += f"; {len(aside)} others, for example {clean(aside[0].name)}: {aside[0].reason}"
    return f"{text}; 'cnn-jobs runs' lists them, 'cnn-jobs train TASK' makes one"


def _json_facts(facts: Facts, sections: Sequence[Section], aside: Sequence[Aside]) -> dict[str, Any]:
    return {
        "experiment": facts.experiment,
        "mlflow": facts.where,
        "made": facts.made,
        "asked": facts.asked,
        "version": facts.version,
        "data": [
            {
                "name": section.name,
                "digest": section.digest,
                "synthetic": section.synthetic,
                "groups": [
                    {
                        "label": group.label,
                        "task": group.task,
                        "group_hash": group.key,
                        "seeds": [run.seed for run in group.runs],
                    }
                    for group in section.groups
                ],
            }
            for section in sections
        ],
        "set_aside": [
            {"run_id": each.run_id, "name": each.name, "state": each.state, "reason": each.reason} for each in aside
        ],
    }


def _write(files: Mapping[str, bytes], folder: Path) -> list[Path]:
    return [write_bytes(folder / name, content) for name, content in files.items()]


def _log(request: ReportRequest, document: Document, files: Mapping[str, bytes], set_aside: int) -> str:
    counted = len(document.run_numbers)
    return log_documents(
        "report",
        "report",
        lambda folder: _write(files, folder),
        tracking_uri=request.tracking_uri,
        experiment=request.experiment,
        state_dir=request.state_dir,
        tags={names.NOTE: f"**Comparison report** of {counted} runs: open `report.html` below Artifacts."},
        params={"tasks": ",".join(request.tasks) or "all", "experiment": request.experiment},
        metrics={names.REPORT_RUNS: float(counted), names.REPORT_SET_ASIDE: float(set_aside)},
    )
