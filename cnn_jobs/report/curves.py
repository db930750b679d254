"""Curves over the optimiser's steps: the mean over the seeds, and the band that all of them lie in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from cnn_jobs.report.groups import Group
from cnn_jobs.report.statistics import estimate
from cnn_jobs.system.figures import GREY, PALETTE, png
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking import names
from cnn_jobs.tracking.run_reader import Curve, TrainingRun

LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (2, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
PAGE_DPI = 130


@dataclass(frozen=True)
class Look:
    """Colour, line and marker of a task, the same in every picture."""

    colour: str
    line: str | tuple[int, tuple[int, ...]]
    marker: str


def look_of(group: Group) -> Look:
    """By the task's place in the registry; another recipe of the same task has its colour and the next marker."""
    place = list(TASKS).index(group.task) % len(PALETTE)
    other = place + 3 if group.changed else place
    return Look(PALETTE[place], LINES[other % len(LINES)], MARKERS[other % len(MARKERS)])


def mean_and_band(curves: Sequence[Curve]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps, and over the curves that have the step: mean, lowest, highest. One that ended early counts until there."""
    values: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in zip(curve.steps, curve.values, strict=True):
            values.setdefault(step, []).append(value)
    steps = sorted(values)
    means = [sum(values[step]) / len(values[step]) for step in steps]
    return steps, means, [min(values[step]) for step in steps], [max(values[step]) for step in steps]


Pick = Callable[[TrainingRun], Curve]


def _draw(axes: Axes, group: Group, pick: Pick, label: str, *, scale: float = 1.0, line: object = None) -> float:
    """Draws a group's curve and band; returns the highest mean."""
    steps, means, low, high = mean_and_band([pick(run) for run in group.runs])
    if not steps:
        return 0.0
    look = look_of(group)
    style = look.line if line is None else line
    every = max(1, len(steps) // 10)
    axes.plot(
        steps,
        scale * np.array(means),
        color=look.colour,
        linestyle=style,
        marker=look.marker,
        markersize=4,
        markevery=every,
        linewidth=1.5,
        label=label,
    )
    if len(group.runs) > 1:
        axes.fill_between(
            steps, scale * np.array(low), scale * np.array(high), color=look.colour, alpha=0.15, linewidth=0
        )
    return scale * max(means)


def _finish(axes: Axes, ylabel: str) -> None:
    axes.set(xlabel="optimiser step", ylabel=ylabel)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


LOSS, ACCURACY = "cross-entropy (nats)", "accuracy (%)"


def overview(groups: Sequence[Group]) -> bytes:
    """Validation loss and accuracy of all groups, side by side."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for group in groups:
        _draw(left, group, lambda run: run.val_loss, _label(group))
        _draw(right, group, lambda run: run.val_accuracy, _label(group), scale=100)
    left.set_title("Validation loss")
    right.set_title("Validation accuracy")
    _finish(left, LOSS)
    _finish(right, ACCURACY)
    return png(figure, PAGE_DPI)


def together(groups: Sequence[Group], title: str) -> bytes:
    """Training and validation loss, and validation accuracy, of few groups in one picture."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for group in groups:
        _draw(left, group, lambda run: run.train_loss, f"{_label(group)}: training", line=":")
        _draw(left, group, lambda run: run.val_loss, f"{_label(group)}: validation", line="-")
        _draw(right, group, lambda run: run.val_accuracy, _label(group), scale=100, line="-")
    figure.suptitle(title)
    left.set_title("Loss")
    right.set_title("Validation accuracy")
    left.set_ylim(bottom=0)
    _finish(left, LOSS)
    _finish(right, ACCURACY)
    return png(figure, PAGE_DPI)


def accuracy_dots(groups: Sequence[Group], *, with_reference: bool) -> bytes:
    """Test accuracy of the last model: each seed a point, mean and 95 % interval, the course report's figure."""
    figure = Figure(figsize=(9, 0.9 + 0.5 * len(groups)), layout="constrained")
    axes = figure.subplots()
    seen: set[str] = set()

    def once(label: str) -> str:
        new = label not in seen
        seen.add(label)
        return label if new else ""

    for place, group in enumerate(groups):
        look, values = look_of(group), list(group.values(names.LAST_TEST_ACCURACY).values())
        found = estimate(values)
        percent = [100 * value for value in values]
        axes.plot(
            percent, [place + 0.22] * len(values), look.marker, color=look.colour, alpha=0.55, markersize=4, label=""
        )
        axes.plot([100 * found.mean], [place], look.marker, color=look.colour, markersize=8)
        if found.low is not None and found.high is not None:
            axes.plot([100 * found.low, 100 * found.high], [place, place], color=look.colour, linewidth=2)
        theirs = TASKS[group.task].reference.test_accuracy
        if with_reference and theirs is not None and not group.changed:
            mark = {"color": GREY, "markersize": 14, "markeredgewidth": 2}
            axes.plot([100 * theirs], [place], "|", label=once("course report"), **mark)  # type: ignore[arg-type]
    axes.set_yticks(range(len(groups)), [_label(group) for group in groups])
    axes.invert_yaxis()
    axes.set(xlabel="test accuracy of the last model (%); line: 95 % interval of the mean; small: each seed")
    axes.grid(alpha=0.3, axis="x")
    if seen:
        axes.legend(fontsize=8)
    return png(figure, PAGE_DPI)


def _label(group: Group) -> str:
    """A long list of changes would push the curves out of the picture."""
    label = group.label if len(group.label) <= 48 else f"{group.label[:47]}…"
    return f"{plain(label)}, n = {len(group.runs)}"


def plain(text: str) -> str:
    """A text as it is: to matplotlib a dollar sign would begin a formula."""
    return text.replace("$", "\\$")
