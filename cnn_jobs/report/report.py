"""The comparison report, from arguments to files and their MLflow run: the only place that wires its parts together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from cnn_jobs import __version__
from cnn_jobs.errors import UserError
from cnn_jobs.report import contents
from cnn_jobs.report.document import Document, clean
from cnn_jobs.report.formats import FILE_NAMES, FORMATS, html, markdown, report_json, tables_csv
from cnn_jobs.report.groups import Section, put_together, with_first_runs
from cnn_jobs.system.files import write_bytes
from cnn_jobs.tracking import names
from cnn_jobs.tracking.connection import without_password
from cnn_jobs.tracking.document_run import log_documents
from cnn_jobs.tracking.run_reader import Aside, ReportSource


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
    sections, aside = put_together(runs)
    if not sections:
        raise UserError(_nothing(request, aside))
    sections = _complete(source, sections, progress)
    facts = contents.Facts(
        experiment=request.experiment,
        where=without_password(request.tracking_uri),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        asked=_asked(request),
        others=found.others,
        version=__version__,
    )
    document = contents.report(facts, sections, aside, request.compare)
    contents_of = _rendered(document, _json_facts(facts, sections, aside), FORMATS if request.log else request.formats)
    left_out = {FILE_NAMES[each] for each in FORMATS if each not in request.formats}
    files = _write({name: made for name, made in contents_of.items() if name not in left_out}, request.out)
    where = _log(request, document, contents_of, len(aside)) if request.log else ""
    return Reported(document, sections, aside, files, where)


def _complete(source: ReportSource, sections: Sequence[Section], progress: Progress) -> list[Section]:
    """Reads curves and files of the runs that count, and of each group's first run the picture of mistakes."""
    runs = [run for section in sections for group in section.groups for run in group.runs]
    progress.begin("reading runs", len(runs))
    completed = {run.run_id: run for run in source.complete(runs, progress.step)}
    read = (
        replace(
            section,
            groups=tuple(
                replace(group, runs=tuple(completed[run.run_id] for run in group.runs)) for group in section.groups
            ),
        )
        for section in sections
    )
    return [with_first_runs(section, source.with_mistakes) for section in read]


def _nothing(request: ReportRequest, aside: Sequence[Aside]) -> str:
    of = f" of {', '.join(request.tasks)}" if request.tasks else ""
    text = f"experiment '{clean(request.experiment)}' has no finished runs{of}"
    if aside:
        text += f"; {len(aside)} others, as {clean(aside[0].name)}: {aside[0].reason}"
    return f"{text}; 'cnn-jobs runs' lists them, 'cnn-jobs train TASK' makes one"


def _asked(request: ReportRequest) -> str:
    since = datetime.fromtimestamp(request.since_ms / 1000, UTC).strftime("since %Y-%m-%d %H:%M UTC")
    return f"asked for: {', '.join(request.tasks) or 'all tasks'}, {since if request.since_ms else 'all times'}"


def _rendered(document: Document, facts: dict[str, Any], formats: Sequence[str]) -> dict[str, bytes]:
    """The report in each of the formats, and its pictures, by their paths."""
    write: dict[str, Callable[[], str]] = {
        "html": lambda: html(document),
        "md": lambda: markdown(document),
        "csv": lambda: tables_csv(document),
        "json": lambda: report_json(document, facts),
    }
    texts = {FILE_NAMES[each]: write[each]().encode() for each in FORMATS if each in formats}
    return texts | {f"plots/{each.name}": each.png for each in document.pictures()}


def _write(files: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Each of them whole."""
    return [write_bytes(folder / name, content) for name, content in files.items()]


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
