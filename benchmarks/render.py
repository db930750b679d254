"""Results to Markdown, and Markdown into the page: nothing in a table is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.figures import Summary, of_ceiling, over_others, ratios, targets

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

CONTENDERS = {
    "ours": "(a) our loop, tracking on",
    "ceiling": "(b) one constant batch: the ceiling",
    "usual_0": "(c) usual loop, 0 workers",
    "usual_2": "(c) usual loop, 2 workers",
    "lightning": "(d) Lightning",
}
ABLATIONS = {
    "shipped": "as shipped",
    "relu_before_pool": "ReLU before max pooling",
    "plain_convolution": "torch's convolutions in place of tiles",
    "contiguous": "contiguous in place of channels_last",
    "plain_optimizer": "plain in place of fused optimiser",
    "all_undone": "all four undone",
    "bf16": "as shipped, with bfloat16 autocast",
}
WAIT_POLICIES = {
    "shipped_alone": "as shipped, alone",
    "default_alone": "OpenMP's default, alone",
    "passive_alone": "`OMP_WAIT_POLICY=PASSIVE`, alone",
    "shipped_beside": "as shipped, beside a busy process",
    "default_beside": "OpenMP's default, beside a busy process",
    "passive_beside": "`OMP_WAIT_POLICY=PASSIVE`, beside a busy process",
}
MEMORY = {
    "imports": "imports alone: torch, mlflow, matplotlib",
    "small": "a run on little data",
    "full": "a run on data of CIFAR-10's size",
}


def render(results: Mapping[str, Any]) -> str:
    """Every part that ``results`` holds, in the order of the page."""
    parts = [("speed", _speed), ("ablations", _ablations), ("wait_policy", _wait_policy)]
    parts += [("startup", _startup), ("memory", _memory)]
    blocks = [conditions_line(results["conditions"]), _targets(results)]
    blocks += [write(results[name]) for name, write in parts if name in results]
    return "\n\n".join(block for block in blocks if block)


def into_page(page: str, rendered: str) -> str:
    """``page`` with ``rendered`` between its two marks. Raises ``ValueError`` where it does not have each once."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"the page must hold the lines {BEGIN} and {END} once each, in this order")
    return f"{page.split(BEGIN)[0]}{BEGIN}\n\n{rendered}\n\n{END}{page.split(END)[1]}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Sequence[float], form: str) -> list[str]:
    """The cells median, least-most and n."""
    summary = Summary.of(values)
    return [format(summary.median, form), f"{summary.least:{form}} to {summary.most:{form}}", str(summary.n)]


def conditions_line(facts: Mapping[str, Any]) -> str:
    """When, on what and with which versions it was measured."""
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    changed = " with uncommitted changes" if facts["dirty"] else ""
    return (
        f"{facts['date']}, `{facts['command']}`, commit {facts['commit'] or 'unknown'}{changed}. "
        f"{facts['cpu']} ({facts['instructions']}), {facts['cores']} cores, {facts['threads']} threads, "
        f"{facts['memory_bytes'] / 1e9:.0f} GB; load average before the start {facts['load_average']:.2f}; "
        f"`GOMP_SPINCOUNT={facts['gomp_spincount']}`; {facts['platform']}; "
        f"Python {facts['python']}, {packages}."
    )


def _targets(results: Mapping[str, Any]) -> str:
    rows = [[target.text, target.measured, "yes" if target.met else "**no**"] for target in targets(results)]
    return "## Targets\n\n" + table(["target", "measured (median)", "met"], rows) if rows else ""


def _speed(parts: Mapping[str, Any]) -> str:
    blocks = ["## Speed"]
    for task, part in parts.items():
        rates = part["images_per_second"]
        names = {**CONTENDERS, "lightning": f"{CONTENDERS['lightning']}, {part['lightning_workers']} workers"}
        blocks.append(f"**{task}**, batches of {part['batch_size']}, {part['steps']} steps a round:")
        rows = [[names[name], *spread(values, ",.0f")] for name, values in rates.items()]
        blocks.append(table(["contender", "images/s, median", "least to most", "n"], rows))
        rows = [["(a) / (b)", *spread(of_ceiling(rates), ".3f")]]
        rows.append(["(a) / fastest of (c) and (d)", *spread(over_others(rates), ".2f")])
        blocks.append(table(["ratio within a round", "median", "least to most", "n"], rows))
    return "\n\n".join(blocks)


def _ablations(parts: Mapping[str, Any]) -> str:
    return _variants("## What each choice is worth", parts, ABLATIONS, "shipped", "variant")


def _wait_policy(parts: Mapping[str, Any]) -> str:
    return _variants("## Idle threads: spin or sleep", parts, WAIT_POLICIES, "shipped_alone", "wait policy")


def _variants(title: str, parts: Mapping[str, Any], names: Mapping[str, str], base: str, column: str) -> str:
    """A table a task: each variant's rate, and what it is of that of ``base``."""
    blocks = [title]
    for task, part in parts.items():
        blocks.append(f"**{task}**, constant batch of {part['batch_size']}, {part['steps']} steps a round:")
        rows = _against(part["images_per_second"], names, base)
        header = [column, "images/s, median", "least to most", "n", f"of {base.replace('_', ' ')}"]
        blocks.append(table(header, rows))
    return "\n\n".join(blocks)


def _against(rates: Mapping[str, Sequence[float]], names: Mapping[str, str], base: str) -> list[list[str]]:
    """A row a variant, with the median of its ratio to ``base`` within a round."""
    return [
        [names[name], *spread(values, ",.0f"), f"{Summary.of(ratios(rates, name, [base])).median:.0%}"]
        for name, values in rates.items()
    ]


def _startup(seconds: Mapping[str, Sequence[float]]) -> str:
    rows = [["`import torch, torchvision, mlflow`", *spread(seconds["imports"], ".2f")]]
    rows.append(["`cnn-jobs train task2 --data shapes`, first step", *spread(seconds["first_step"], ".2f")])
    rows.append(["first step over imports, within a round", *spread(ratios(seconds, "first_step", ["imports"]), ".2f")])
    return "## Start\n\n" + table(["from process start to", "seconds, median", "least to most", "n"], rows)


def _memory(part: Mapping[str, Any]) -> str:
    peaks = part["peak_bytes"]
    rows = [[MEMORY[name], *spread([value / 1e6 for value in values], ",.0f")] for name, values in peaks.items()]
    middle = {name: Summary.of(values).median for name, values in peaks.items()}
    data, small = part["data_bytes"], part["small_data_bytes"]
    whole = (middle["full"] - middle["imports"]) / data
    copies = (middle["full"] - middle["small"]) / (data - small)
    return (
        "## Memory\n\n"
        + table(["peak resident memory of", "MB, median", "least to most", "n"], rows)
        + f"\n\nThe data in memory are {data / 1e6:,.0f} MB, the little data {small / 1e6:,.0f} MB. "
        f"Peak over the imports: {whole:.2f} times the data. "
        f"What the larger data add to the peak: {copies:.2f} times what they are larger by."
    )
