"""Accuracies on real images beside the course report: MLflow to docs/results.json, to docs/results.md and README.md.

    python -m benchmarks.real_results collect --experiment cifar10-jpeg   # reads MLFLOW_TRACKING_URI
    python -m benchmarks.real_results render

A test holds the rendered pages against the JSON file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cnn_jobs.files import write_text
from cnn_jobs.models.describe import describe, total_parameters
from cnn_jobs.tasks import TASKS, Reference

ROOT = Path(__file__).resolve().parents[1]
JSON_FILE, PAGE, README = ROOT / "docs/results.json", ROOT / "docs/results.md", ROOT / "README.md"
PARTS = ("train", "val", "test")

# A plain trial with the same images and seed 0, from the hand-out of these exercises: the model it is of, figures.
TRIALS = {
    "task2": ("best", {"val": 0.729, "test": 0.724}),
    "task3-arch1": ("last", {"train": 0.966, "val": 0.758, "test": 0.763}),
    "task3e": ("last", {"train": 0.885, "val": 0.788, "test": 0.785}),
}


def collect(experiment: str) -> list[dict[str, Any]]:
    """The finished runs of an experiment on real images, in the order of the registry."""
    from cnn_jobs.tracking.connection import tracking_uri
    from cnn_jobs.tracking.query import runs_of

    rows = [row for row in runs_of(tracking_uri(), experiment) if row.tags.get("cnn_jobs.state") == "finished"]
    rows = [row for row in rows if row.tags.get("cnn_jobs.synthetic_data") == "false"]
    order = list(TASKS)
    rows.sort(key=lambda row: (order.index(row.params["task"]), int(row.params["seed"])))
    return [
        {
            "task": row.params["task"],
            "seed": int(row.params["seed"]),
            "run_id": row.run_id,
            "commit": row.tags.get("mlflow.source.git.commit", "")[:12],
            "data_digest": row.tags["cnn_jobs.data_digest"],
            "device": row.tags["cnn_jobs.device"],
            "threads": int(row.tags["cnn_jobs.threads"]),
            "figures": {
                key: value
                for key, value in sorted(row.metrics.items())
                if key.startswith(("best/", "last/", "attempt/"))
            },
        }
        for row in rows
    ]


def table(runs: list[dict[str, Any]]) -> str:
    """The results in Markdown, a row a model: ours, the difference to the report in points, the report's."""
    lines = [
        "| Task | Model | Train acc. | Val. acc. | Test acc. | Report: train | val. | test | Test, ours - report |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run in runs:
        reference = TASKS[run["task"]].reference
        for model in ("best", "last"):
            ours = [run["figures"][f"{model}/{part}_accuracy"] for part in PARTS]
            # The report's tables are of the last model.
            theirs = _accuracies(reference) if model == "last" else (None, None, None)
            cells = [*(f"{value:.3f}" for value in ours), *(_cell(value) for value in theirs)]
            cells.append(f"{100 * (ours[2] - theirs[2]):+.1f} points" if theirs[2] is not None else "-")
            lines.append(f"| {run['task']} | {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _accuracies(reference: Reference) -> tuple[float | None, float | None, float | None]:
    return reference.train_accuracy, reference.val_accuracy, reference.test_accuracy


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def losses_table(runs: list[dict[str, Any]]) -> str:
    """Losses in nats, the step of the best model, what the run cost."""
    lines = [
        "| Task | Last: train loss | Report | Last: val loss | Best: val loss | at step | Steps | Device s | Wall s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run in runs:
        figures, reference = run["figures"], TASKS[run["task"]].reference
        cells = [
            f"{figures['last/train_loss']:.4f}",
            "-" if reference.train_loss is None else f"{reference.train_loss:.4f}",
            f"{figures['last/val_loss']:.4f}",
            f"{figures['best/val_loss']:.4f}",
            f"{figures['best/step']:.0f}",
            f"{figures['attempt/steps']:.0f}",
            f"{figures['attempt/device_seconds']:.0f}",
            f"{figures['attempt/wall_seconds']:.0f}",
        ]
        lines.append(f"| {run['task']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def trial_table(runs: list[dict[str, Any]]) -> str:
    """Ours minus the plain trial on the same images, in points of accuracy."""
    lines = ["| Task | Model | Part | Ours | Trial | Difference |", "|---|---|---|---:|---:|---:|"]
    for run in runs:
        model, figures = TRIALS.get(run["task"], ("", {}))
        for part, theirs in figures.items():
            ours = run["figures"][f"{model}/{part}_accuracy"]
            cells = f"{ours:.3f} | {theirs:.3f} | {100 * (ours - theirs):+.1f} points"
            lines.append(f"| {run['task']} | {model} | {part} | {cells} |")
    return "\n".join(lines) + "\n"


def page(content: dict[str, Any]) -> str:
    """The whole of docs/results.md."""
    runs = content["runs"]
    digests = sorted({run["data_digest"] for run in runs})
    machines = sorted({f"{run['device']}, {run['threads']} thread(s) a run" for run in runs})
    commits = sorted({run["commit"] for run in runs})
    notes = [f"- {TASKS[run['task']].name}: {TASKS[run['task']].reference.note}" for run in runs]
    return "\n".join(
        [
            "# Results on real images",
            "",
            "Rendered from `results.json` by `python -m benchmarks.real_results render`; do not edit by hand.",
            "",
            f"One seed ({', '.join(sorted({str(run['seed']) for run in runs}))}) a task: no spread, and no claim about "
            "which task is better: the differences between some of them are within what another seed would change.",
            "",
            "- Images: all 60,000 of CIFAR-10 as JPEGs of quality about 75 (ImageFolder layout), which costs a few "
            "points against the original archive that the course report used.",
            f"- Data digest: {', '.join(f'`{digest}`' for digest in digests)}",
            f"- Machine: {'; '.join(machines)}. {content['machine_note']}",
            f"- Code: commit {', '.join(f'`{commit}`' for commit in commits)}; {content['versions']}",
            "",
            "```console",
            *content["commands"],
            "```",
            "",
            "## Accuracy",
            "",
            "`best` is the model of the lowest validation loss, `last` the one at the end; the course report's figures "
            "are of the last one. Accuracies are fractions, dropout off, BatchNorm on its running statistics.",
            "",
            table(runs),
            "## Losses and cost",
            "",
            losses_table(runs),
            *[note for note in notes if not note.endswith(": ")],
            "",
            "## Beside a plain trial on the same images",
            "",
            "A straightforward PyTorch loop (seed 0, another initialisation and order than ours) gave:",
            "",
            trial_table(runs),
        ]
    )


def tasks_table() -> str:
    """The registry in Markdown, a row a task."""
    lines = ["| Task | What it trains | Parameters | Optimiser | Report: test acc. |", "|---|---|---:|---|---:|"]
    for task in TASKS.values():
        parameters = total_parameters(describe(task.network))
        recipe, reference = task.recipe, _cell(task.reference.test_accuracy)
        optimizer = f"{recipe.optimizer}, lr {recipe.lr:g}"
        lines.append(f"| `{task.name}` | {task.title} | {parameters:,} | {optimizer} | {reference} |")
    return "\n".join(lines) + "\n"


def readme(text: str, content: dict[str, Any]) -> str:
    """README.md with its tables of tasks and results between their markers."""
    return between(between(text, "results", table(content["runs"])), "tasks", tasks_table())


def between(text: str, name: str, body: str) -> str:
    """``text`` with ``body`` in place of what stands between the markers of that name."""
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
    parser.add_argument("--machine-note", default="")
    arguments = parser.parse_args()
    if arguments.step == "collect":
        from importlib.metadata import version

        names = ("torch", "torchvision", "mlflow", "numpy", "pillow")
        runs = collect(arguments.experiment)
        content = {
            "versions": ", ".join(f"{name} {version(name)}" for name in names),
            "machine_note": arguments.machine_note,
            "commands": [
                f"cnn-jobs train {run['task']} --data cifar10-jpeg.zip --seed {run['seed']} "
                f"--threads {run['threads']} --experiment {arguments.experiment}"
                for run in runs
            ],
            "runs": runs,
        }
        write_text(JSON_FILE, json.dumps(content, indent=2) + "\n")
    content = json.loads(JSON_FILE.read_text())
    write_text(PAGE, page(content))
    write_text(README, readme(README.read_text(), content))


if __name__ == "__main__":
    main()
