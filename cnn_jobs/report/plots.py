"""The report's plots: curves with bands over the seeds, and test accuracies with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from cnn_jobs.report.analysis import TESTED
from cnn_jobs.report.groups import Group
from cnn_jobs.system.plotting import GREY, PALETTE, png
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking.run_reader import Curve

LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (2, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DPI = 130


def overview(groups: Sequence[Group]) -> bytes:
    """Validation loss and accuracy of all groups, side by side."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for group in groups:
        _draw(left, group, [run.val_loss for run in group.runs], _label(group))
        _draw(right, group, [run.val_accuracy for run in group.runs], _label(group), scale=100)
    left.set_title("Validation loss")
    right.set_title("Validation accuracy")
    return _finished(figure, left, right)


def together(groups: Sequence[Group], title: str) -> bytes:
    """Training and validation loss, and validation accuracy, of few groups in one picture."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for group in groups:
        _draw(left, group, [run.train_loss for run in group.runs], f"{_label(group)}: training", line=":")
        _draw(left, group, [run.val_loss for run in group.runs], f"{_label(group)}: validation", line="-")
        _draw(right, group, [run.val_accuracy for run in group.runs], _label(group), line="-", scale=100)
    figure.suptitle(title)
    left.set_title("Loss")
    right.set_title("Validation accuracy")
    left.set_ylim(bottom=0)
    return _finished(figure, left, right)


def accuracy_dots(groups: Sequence[Group], *, with_reference: bool) -> bytes:
    """Test accuracy of the last model: each seed a point, mean and 95 % interval, the course report's figure."""
    figure = Figure(figsize=(9, 0.9 + 0.5 * len(groups)), layout="constrained")
    axes = figure.subplots()
    reference_label = "course report"
    for place, group in enumerate(groups):
        colour, _, marker = _style(group)
        percent = [100 * value for value in group.values(TESTED).values()]
        found = group.estimate(TESTED)
        axes.plot(percent, [place + 0.22] * len(percent), marker, color=colour, alpha=0.55, markersize=4, label="")
        axes.plot([100 * found.mean], [place], marker, color=colour, markersize=8)
        if found.interval:
            axes.plot([100 * end for end in found.interval], [place, place], color=colour, linewidth=2)
        theirs = TASKS[group.task].reference.test_accuracy
        if with_reference and theirs is not None and not group.changed:
            mark: dict[str, Any] = {"color": GREY, "markersize": 14, "markeredgewidth": 2}
            axes.plot([100 * theirs], [place], "|", label=reference_label, **mark)
            reference_label = ""  # once in the legend
    axes.set_yticks(range(len(groups)), [_label(group) for group in groups])
    axes.invert_yaxis()
    axes.set(xlabel="test accuracy of the last model (%); line: 95 % interval of the mean; small: each seed")
    axes.grid(alpha=0.3, axis="x")
    if not reference_label:
        axes.legend(fontsize=8)
    return png(figure, DPI)


def plain(text: str) -> str:
    """Text in which matplotlib finds no formula: a dollar sign would begin one."""
    return text.replace("$", "\\$")


def _style(group: Group) -> tuple[str, Any, str]:
    """Colour, line and marker of a task in every plot; another recipe has its colour, but another line and marker."""
    place = list(TASKS).index(group.task) % len(PALETTE)
    other = place + 3 if group.changed else place
    return PALETTE[place], LINES[other % len(LINES)], MARKERS[other % len(MARKERS)]


def _draw(axes: Axes, group: Group, curves: Sequence[Curve], label: str, *, line: str = "", scale: float = 1.0) -> None:
    """The mean of the curves and, for several, the band from lowest to highest.

    A curve that ended early counts up to its end.
    """
    values: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in zip(curve.steps, curve.values, strict=True):
            values.setdefault(step, []).append(value)
    steps = sorted(values)
    if not steps:
        return
    colour, own_line, marker = _style(group)
    axes.plot(
        steps,
        [scale * sum(values[step]) / len(values[step]) for step in steps],
        color=colour,
        linestyle=line or own_line,
        marker=marker,
        markersize=4,
        markevery=max(1, len(steps) // 10),
        linewidth=1.5,
        label=label,
    )
    if len(curves) > 1:
        low, high = ([scale * end(values[step]) for step in steps] for end in (min, max))
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)


def _finished(figure: Figure, losses: Axes, accuracies: Axes) -> bytes:
    for axes, label in ((losses, "cross-entropy (nats)"), (accuracies, "accuracy (%)")):
        axes.set(xlabel="optimiser step", ylabel=label)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    return png(figure, DPI)


def _label(group: Group) -> str:
    """Shortened: a long list of changes would leave no room for the curves."""
    label = group.label if len(group.label) <= 48 else f"{group.label[:47]}…"
    return f"{plain(label)}, n = {len(group.runs)}"
