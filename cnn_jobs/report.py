"""The comparison report, from arguments to files and their MLflow run: the only place that wires its parts together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from cnn_jobs import __version__
from cnn_jobs.document_run import log_documents
from cnn_jobs.errors import UserError
from cnn_jobs.files import write_bytes, write_text
from cnn_jobs.reporting import contents
from cnn_jobs.reporting.document import Document
from cnn_jobs.reporting.groups import Group, Section, put_together
from cnn_jobs.reporting.html import html
from cnn_jobs.reporting.rows import Aside, TrainingRun, reason_against
from cnn_jobs.reporting.text_files import markdown, report_json, tables_csv
from cnn_jobs.reporting.words import clean
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking.connection import without_password
from cnn_jobs.tracking.report_source import ReportSource

FORMATS = ("html", "md", "csv", "json")
FILE_NAMES = {"html": "report.html", "md": "report.md", "csv": "tables.csv", "json": "report.json"}


class Progress(Protocol):
    """Told how far the reading is."""

    def begin(self, what: str, count: int) -> None:
        """``count`` steps of ``what`` follow."""

    def step(self) -> None:
        """One is done."""


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """Which runs to report, and where to. ``since_ms``: only runs that started then or later; no tasks: all."""

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
class Reported:
    """What came of it."""

    document: Document
    sections: Sequence[Section]
    aside: Sequence[Aside]
    files: Sequence[Path]
    where: str


def make_report(request: ReportRequest, progress: Progress) -> Reported:
    """Reads, compares, writes the files to ``request.out`` and keeps them in an MLflow run.

    Raises ``UserError`` (exit 2) where there is nothing to report, ``TrackingError`` where MLflow does not answer.
    """
    source = ReportSource(request.tracking_uri)
    progress.begin("listing runs", 1)
    found = source.experiment(request.experiment, request.since_ms)
    progress.step()
    runs = [run for run in found.runs if not request.tasks or run.task in request.tasks]
    sections, aside = put_together(_complete(source, runs, progress))
    if not sections:
        raise UserError(_nothing(request, aside))
    sections = [_with_mistakes(source, section) for section in sections]
    facts = contents.Facts(
        experiment=request.experiment,
        where=without_password(request.tracking_uri),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        asked=_asked(request),
        others=found.others,
        version=__version__,
    )
    document = contents.report(facts, sections, aside, request.compare)
    files = write_files(document, _json_facts(facts, sections, aside), request.out, request.formats)
    where = _log(request, document, facts, sections, aside) if request.log else ""
    return Reported(document, sections, aside, files, where)


def _complete(source: ReportSource, runs: Sequence[TrainingRun], progress: Progress) -> list[TrainingRun]:
    """Reads curves and files of the runs that can count; of the others the reason is known already."""
    counting = [run for run in runs if not reason_against(run, list(TASKS))]
    progress.begin("reading runs", len(counting))
    completed = {run.run_id: run for run in source.complete(counting, progress.step)}
    return [completed.get(run.run_id, run) for run in runs]


def _with_mistakes(source: ReportSource, section: Section) -> Section:
    def first_pictured(group: Group) -> Group:
        first = source.with_mistakes(group.runs[0])
        return replace(group, runs=(first, *group.runs[1:]))

    return replace(section, groups=tuple(first_pictured(group) for group in section.groups))


def _nothing(request: ReportRequest, aside: Sequence[Aside]) -> str:
    of = f" of {', '.join(request.tasks)}" if request.tasks else ""
    text = f"experiment '{clean(request.experiment)}' has no finished runs{of}"
    if aside:
        text += f"; {len(aside)} others, as {clean(aside[0].name)}: {aside[0].reason}"
    return f"{text}; 'cnn-jobs runs' lists them, 'cnn-jobs train TASK' makes one"


def _asked(request: ReportRequest) -> str:
    since = datetime.fromtimestamp(request.since_ms / 1000, UTC).strftime("since %Y-%m-%d %H:%M UTC")
    return f"asked for: {', '.join(request.tasks) or 'all tasks'}, {since if request.since_ms else 'all times'}"


def write_files(document: Document, facts: dict[str, Any], folder: Path, formats: Sequence[str]) -> list[Path]:
    """The report in each of the formats, and its pictures; each file appears whole."""
    write: dict[str, Callable[[], str]] = {
        "html": lambda: html(document),
        "md": lambda: markdown(document),
        "csv": lambda: tables_csv(document),
        "json": lambda: report_json(document, facts),
    }
    files = [write_text(folder / FILE_NAMES[each], write[each]()) for each in FORMATS if each in formats]
    return files + [write_bytes(folder / "plots" / each.name, each.png) for each in document.pictures()]


def _json_facts(facts: contents.Facts, sections: Sequence[Section], aside: Sequence[Aside]) -> dict[str, Any]:
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
                        "seeds": [r.seed for r in group.runs],
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


def _log(
    request: ReportRequest,
    document: Document,
    facts: contents.Facts,
    sections: Sequence[Section],
    aside: Sequence[Aside],
) -> str:
    counted = len(document.run_numbers)
    json_facts = _json_facts(facts, sections, aside)
    return log_documents(
        "report",
        "report",
        lambda folder: write_files(document, json_facts, folder, FORMATS),
        tracking_uri=request.tracking_uri,
        experiment=request.experiment,
        state_dir=request.state_dir,
        tags={"mlflow.note.content": f"**Comparison report** of {counted} runs: open `report.html` below Artifacts."},
        params={"tasks": ",".join(request.tasks) or "all", "experiment": request.experiment},
        metrics={"report/runs": float(counted), "report/set_aside": float(len(aside))},
    )
