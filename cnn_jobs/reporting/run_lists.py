"""Where every number comes from: the runs that count, those that do not, versions, what could not be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from cnn_jobs.reporting.document import Bullets, Cell, Column, Link, Paragraph, Row, Table
from cnn_jobs.reporting.groups import Section
from cnn_jobs.reporting.rows import Aside, TrainingRun
from cnn_jobs.reporting.words import clean

SHOWN_ASIDE = 500


def runs_table(sections: Sequence[Section], numbers: Mapping[str, int]) -> Table:
    """Every run that counts, with its number, its page in MLflow and its lineage."""
    rows = [
        Row(
            [
                Cell.of(str(numbers[run.run_id])),
                Cell.of(Link(run.run_id, run.url)),
                Cell.of(clean(run.name)),
                Cell.of(group.label),
                Cell.of(str(run.seed)),
                Cell.of(section.name),
                Cell.of(_time(run)),
                Cell.of(_commit(run)),
                Cell.of(clean(run.tags.get("cnn_jobs.attempt", "-"), 8)),
                Cell.of(clean(run.tags.get("cnn_jobs.device", "-"))),
            ],
            anchor=f"run-{numbers[run.run_id]}",
        )
        for section in sections
        for group in section.groups
        for run in group.runs
    ]
    titles = ("No.", "Run", "Name", "Task", "Seed", "Data", "Started (UTC)", "Code", "Attempts", "Device")
    return Table("runs", "Runs that count", [Column(title) for title in titles], rows)


def _time(run: TrainingRun) -> str:
    return datetime.fromtimestamp(run.start_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _commit(run: TrainingRun) -> str:
    commit = clean(run.tags.get("mlflow.source.git.commit", ""), 40)[:12] or "unknown"
    return f"{commit} with changes" if run.tags.get("cnn_jobs.git_dirty", "").lower() == "true" else commit


def versions_table(sections: Sequence[Section]) -> Table | None:
    """Each set of versions, with the runs that had it."""
    sets: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for section in sections:
        for group in section.groups:
            for run in group.runs:
                if run.versions:
                    sets.setdefault(tuple(sorted(run.versions.items())), []).append(run.run_id)
    if not sets:
        return None
    rows = [
        Row([Cell.of(", ".join(f"{clean(name, 30)} {clean(version, 60)}" for name, version in each if version))], runs)
        for each, runs in sets.items()
    ]
    return Table("versions", "Versions", [Column("Python, platform and packages")], rows)


def aside_table(aside: Sequence[Aside]) -> Table:
    """Runs that do not count, with state and reason."""
    rows = [
        Row([Cell.of(Link(each.run_id, each.url)), Cell.of(each.name), Cell.of(each.state), Cell.of(each.reason)])
        for each in aside[:SHOWN_ASIDE]
    ]
    left = len(aside) - len(rows)
    note = (f"and {left:,} more; report.json has them all",) if left else ()
    columns = [Column(title) for title in ("Run", "Name", "State", "Why it does not count")]
    return Table("set-aside", "Runs that do not count", columns, rows, note)


def lacking_list(sections: Sequence[Section]) -> Bullets | None:
    """What could not be read of the runs that count; ``None`` where all could."""
    found: dict[tuple[str, ...], list[str]] = {}
    for section in sections:
        for group in section.groups:
            for run in group.runs:
                if run.lacking:
                    found.setdefault(run.lacking, []).append(run.run_id)
    if not found:
        return None
    items = [Paragraph((f"{clean('; '.join(lacking), 300)}",), runs) for lacking, runs in found.items()]
    return Bullets(items)
