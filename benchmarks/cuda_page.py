"""Renders the tables of docs/cuda.md from benchmarks/cuda.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import Summary, ratios
from benchmarks.render import into_page, spread, table
from cnn_jobs.report.statistics import estimate
from cnn_jobs.system.files import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE, JSON_FILE, CPU_FILE = ROOT / "docs/cuda.md", ROOT / "benchmarks/cuda.json", ROOT / "docs/results.json"
NAMES = {
    "ours": "our loop, tracking on",
    "ours_no_graph": "the same with `--no-graph`",
    "ceiling": "one constant batch: the ceiling",
    "ceiling_bf16": "the ceiling with bfloat16 autocast",
    "usual_0": "usual loop, 0 workers",
    "usual_8": "usual loop, 8 workers",
    "lightning_8": "Lightning, 8 workers",
}


def render(results: Mapping[str, Any]) -> str:
    """The tables of both parts."""
    return "\n\n".join([*_speed(results["speed"]), *_trainings(results["trainings"])])


def _line(facts: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    load = f"{facts['load_average']:.2f}"
    return (
        f"{facts['date']}, `{facts['command']}`, commit {facts['commit']}. {facts['device']}, "
        f"{facts['device_memory_bytes'] / 1e9:.0f} GB, CUDA {facts['cuda']}, cuDNN {facts['cudnn']}; {facts['cpu']}, "
        f"{facts['cores']} cores, {facts['threads']} thread; load average before the start {load}; "
        f"{facts['platform']}; Python {facts['python']}, {packages}."
    )


def _speed(part: Mapping[str, Any]) -> list[str]:
    blocks = ["## Steps", _line(part["conditions"])]
    for task, rates in part["images_per_second"].items():
        blocks.append(f"**{task}**:")
        rows = [[NAMES[name], f"{part['steps'][name]:,}", *spread(values, ",.0f")] for name, values in rates.items()]
        blocks.append(table(["contender", "steps a round", "images/s, median", "least to most", "n"], rows))
        others = [name for name in rates if name.startswith(("usual", "lightning"))]
        rows = [
            ["ours / ours without the graph", *spread(ratios(rates, "ours", ["ours_no_graph"]), ".2f")],
            ["ours without the graph / the ceiling", *spread(ratios(rates, "ours_no_graph", ["ceiling"]), ".2f")],
            ["ours / fastest of usual loop and Lightning", *spread(ratios(rates, "ours", others), ".1f")],
        ]
        blocks.append(table(["ratio within a round", "median", "least to most", "n"], rows))
    return blocks


def _trainings(part: Mapping[str, Any]) -> list[str]:
    graphed, ungraphed = part["alone"]
    facts, asked, finished = part["conditions"], part["asked"], sum(map(len, part["runs"].values()))
    cpu = _on_cpu()
    rows = []
    for task, runs in part["runs"].items():
        found = estimate([run["last/test_accuracy"] for run in runs])
        wall = Summary.of([run["attempt/wall_seconds"] for run in runs])
        steps = Summary.of([run["attempt/steps"] for run in runs])
        other = cpu.get(task, [])
        rows.append(
            [
                task,
                str(found.n),
                f"{100 * found.mean:.2f}",
                found.interval_in_percent,
                f"{100 * estimate(other).mean:.2f} (n = {len(other)})" if other else "-",
                f"{steps.median:,.0f}",
                f"{wall.median:.1f} ({wall.least:.1f} to {wall.most:.1f})",
            ]
        )
    return [
        "## Whole runs on real images",
        f"The same machine and versions, commit {facts['commit']}, `{facts['command']}`; seeds {asked['seeds']} of "
        f"{asked['tasks']} tasks were requested, {finished} runs of {len(part['runs'])} tasks finished{_why(part)}.",
        f"A run of task3e that has the device to itself (n = 1) takes {graphed['attempt/wall_seconds']:.1f} s from the "
        f"start of the process to its end, {graphed['attempt/device_seconds']:.1f} s of them on the device, for "
        f"{graphed['attempt/steps']:,.0f} steps; with `--no-graph` {ungraphed['attempt/wall_seconds']:.1f} s and "
        f"{ungraphed['attempt/device_seconds']:.1f} s. The final figures of both are "
        f"{'the same' if _same(graphed, ungraphed) else '**not the same**'}. The runs below shared the device, "
        f"{part['jobs']} tasks at a time; the runs of a task ran one after another in one process.",
        table(
            [
                "task",
                "n",
                "test acc., last model, %",
                "95 % interval",
                "on CPUs",
                "steps",
                "seconds a run, median (least to most)",
            ],
            rows,
        ),
    ]


def _why(part: Mapping[str, Any]) -> str:
    """The reason why a part is incomplete, in parentheses."""
    return f" ({part['cut_off']})" if "cut_off" in part else ""


def _same(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return all(one[name] == other[name] for name in one if name.endswith("_accuracy"))


def _on_cpu() -> dict[str, list[float]]:
    """Test accuracies of docs/results.md, by task."""
    found: dict[str, list[float]] = {}
    for run in json.loads(CPU_FILE.read_text())["runs"]:
        if run["status"] == "FINISHED":
            found.setdefault(run["tags"]["cnn_jobs.task"], []).append(run["metrics"]["last/test_accuracy"])
    return found


def write_page() -> None:
    """Writes the tables into docs/cuda.md."""
    write_text(PAGE, into_page(PAGE.read_text(encoding="utf-8"), render(json.loads(JSON_FILE.read_text()))))
