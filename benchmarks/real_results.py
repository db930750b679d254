"""Results on real images: from MLflow to docs/results.json, and from there to docs/results.md and README.md.

    python -m benchmarks.real_results collect --experiment cifar10-jpeg   # reads MLFLOW_TRACKING_URI
    python -m benchmarks.real_results render

A test compares the rendered pages with the JSON file.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cnn_jobs import __version__
from cnn_jobs.networks.table import describe, total_parameters
from cnn_jobs.report.chapters import Facts, build_document
from cnn_jobs.report.document import Document
from cnn_jobs.report.formats import markdown
from cnn_jobs.report.groups import Section, group_runs
from cnn_jobs.system.files import write_bytes, write_text
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking import names
from cnn_jobs.tracking.run_reader import Confusion, Curve, TrainingRun

ROOT = Path(__file__).resolve().parents[1]
JSON_FILE, PAGE, README = ROOT / "docs/results.json", ROOT / "docs/results.md", ROOT / "README.md"
PLOTS = ROOT / "docs/plots"
CURVES = ("train_loss", "val_loss", "val_accuracy")


def collect(experiment: str) -> dict[str, Any]:
    """The data of an experiment that the report needs; writes the plots of mistakes to docs/plots."""
    from cnn_jobs.tracking.connection import tracking_uri
    from cnn_jobs.tracking.run_reader import RunReader

    reader = RunReader(tracking_uri())
    found = reader.experiment(experiment)
    runs = [replace(run, url="") for run in reader.complete(found.runs, lambda: None)]
    sections, _ = group_runs(runs)
    for section in sections:
        for group in section.groups:
            picture = reader.with_mistakes(group.runs[0]).mistakes
            write_bytes(PLOTS / _mistakes_name(group.runs[0]), picture)
    return {
        "experiment": experiment,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "others": found.others,
        "runs": [{name: value for name, value in asdict(run).items() if name != "mistakes"} for run in runs],
    }


def _mistakes_name(run: TrainingRun) -> str:
    return f"mistakes-{run.task}-{run.group_hash[:8]}.png"


def read(content: dict[str, Any]) -> tuple[Document, list[Section]]:
    """The report, from the JSON that ``collect`` returned."""
    runs = []
    for row in content["runs"]:
        curves = {name: Curve(*(tuple(row[name][part]) for part in ("steps", "values"))) for name in CURVES}
        matrix = row["confusion"]
        confusion = Confusion(tuple(matrix["classes"]), tuple(map(tuple, matrix["counts"]))) if matrix else None
        runs.append(TrainingRun(**{**row, **curves, "confusion": confusion, "lacking": tuple(row["lacking"])}))
    sections, aside = group_runs(runs)
    by_id = {run.run_id: run for run in runs}
    for first in (group.runs[0] for section in sections for group in section.groups):
        by_id[first.run_id] = replace(first, mistakes=(PLOTS / _mistakes_name(first)).read_bytes())
    sections = [section.with_runs(by_id) for section in sections]
    where, asked = "a local MLflow server", "selected: all tasks, all times"
    facts = Facts(content["experiment"], where, content["made"], asked, content["others"], __version__)
    return build_document(facts, sections, aside), sections


def page(content: dict[str, Any]) -> str:
    """docs/results.md: how to reproduce the report, and the report."""
    commands = [
        f"cnn-jobs train {run['tags']['cnn_jobs.task']} --data cifar10-jpeg.zip --seed {run['params']['seed']} "
        f"--threads {run['tags']['cnn_jobs.threads']} --experiment {content['experiment']} "
        f"--run-key {run['tags']['cnn_jobs.run_key']}"
        for run in content["runs"]
        if run["status"] == "FINISHED"
    ]
    before = [
        "<!-- Made by `python -m benchmarks.real_results render` from results.json; do not edit. -->",
        "",
        f"{content['remark']} These commands made the runs; a run with several attempts in the cost table was killed "
        "and started again:",
        "",
        "```console",
        *commands,
        f"cnn-jobs report --experiment {content['experiment']}",
        "```",
        "",
    ]
    return "\n".join(before) + "\n" + markdown(read(content)[0])


def results_table(content: dict[str, Any]) -> str:
    """Accuracies of the last model in Markdown, one row per task, in percent."""
    lines = ["| Task | n | Train acc. | Val. acc. | Test acc. | 95 % interval | Report: test | Ours - report |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    for section in read(content)[1]:
        for group in section.groups:
            parts = {part: group.estimate(names.final("last", part, "accuracy")) for part in names.PARTS}
            found, theirs = parts["test"], TASKS[group.task].reference.test_accuracy
            cells = [f"{100 * each.mean:.2f}" for each in parts.values()]
            cells += [found.interval_in_percent, "-" if theirs is None else f"{100 * theirs:.2f}"]
            cells.append("-" if theirs is None else f"{100 * (found.mean - theirs):+.2f} points")
            lines.append(f"| {group.label} | {found.n} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def tasks_table() -> str:
    """The registry in Markdown, one row per task."""
    lines = ["| Task | What it trains | Parameters | Optimiser | Report: test acc. |", "|---|---|---:|---|---:|"]
    for task in TASKS.values():
        parameters = total_parameters(describe(task.network))
        recipe, theirs = task.recipe, task.reference.test_accuracy
        reference = "-" if theirs is None else f"{theirs:.3f}"
        lines.append(
            f"| `{task.name}` | {task.title} | {parameters:,} | {recipe.optimizer}, lr {recipe.lr:g} | {reference} |"
        )
    return "\n".join(lines) + "\n"


def readme(text: str, content: dict[str, Any]) -> str:
    """README.md with its tables of tasks and results updated."""
    return between(between(text, "results", results_table(content)), "tasks", tasks_table())


def between(text: str, name: str, body: str) -> str:
    """``text`` with ``body`` between the markers of that name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"no markers '{name}' in the page")
    return f"{before}{begin}\n{body}{end}{after}"


def main() -> None:
    """Collects or renders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["collect", "render"])
    parser.add_argument("--experiment", default="cifar10-jpeg")
    parser.add_argument("--remark", default="")
    arguments = parser.parse_args()
    if arguments.step == "collect":
        content = {"remark": arguments.remark, **collect(arguments.experiment)}
        write_text(
            JSON_FILE,
            json.dumps(content, indent=None, separators=(",", ":")).replace('{"run_id"', '\n{"run_id"') + "\n",
        )
    content = json.loads(JSON_FILE.read_text())
    for picture in read(content)[0].pictures():
        write_bytes(PLOTS / picture.name, picture.png)
    write_text(PAGE, page(content))
    write_text(README, readme(README.read_text(), content))


if __name__ == "__main__":
    main()
