"""Plots of filters and channels beside the picture that they respond to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cnn_jobs.interpret.measurements import Array, ChannelFacts, FilterFacts
from cnn_jobs.interpret.picture import Picture
from cnn_jobs.system.plotting import BLUE, save_figure

TEXT_SIZE, SMALL_SIZE = 10, 8.5
COLUMNS = 5  # channels in a row


def plot_filters(
    picture: Picture,
    title: str,
    weights: Array,
    activations: Array,
    facts: Sequence[FilterFacts],
    path: Path,
) -> None:
    """One row per filter: its weights, its activation in grey, and its response in the picture's regions.

    weights: (N, C, k, k); activations: (N, H, W). Every panel is scaled to its own minimum and maximum.
    """
    rows = len(facts)
    figure = Figure(figsize=(9.6, 2.35 * rows + 2.9), layout="constrained")
    figure.suptitle(title, fontsize=13)
    above, below = cast(Any, figure.subfigures(2, 1, height_ratios=[2.4, 2.35 * rows]))
    _draw_image(above.subplots(), picture.pixels / 255, picture.name)
    grid = below.subplots(rows, 3, squeeze=False, width_ratios=[1, 1.35, 1.5])
    for (left, middle, right), kernel, activation, each in zip(grid, weights, activations, facts, strict=True):
        _draw_image(left, kernel.transpose(1, 2, 0) if len(kernel) == 3 else np.linalg.norm(kernel, axis=0))
        left.set_ylabel(f"filter {each.index}", fontsize=TEXT_SIZE + 1, fontweight="bold")
        left.set_title(each.description.replace(" in ", "\nin ", 1), fontsize=SMALL_SIZE, loc="left")
        _draw_image(middle, activation)
        middle.set_title("activation", fontsize=SMALL_SIZE, loc="left")
        _draw_responses(right, each)
    save_figure(figure, path)


def plot_channels(
    picture: Picture,
    title: str,
    activations: Array,
    facts: Sequence[ChannelFacts],
    answer: str,
    cam: Array,
    path: Path,
) -> None:
    """The picture, the Grad-CAM of the network's answer, and the channels' activations (N, H, W) in grey."""
    rows = -(-len(facts) // COLUMNS)
    figure = Figure(figsize=(10, 2.7 * rows + 3.7), layout="constrained")
    figure.suptitle(title, fontsize=13)
    above, below = cast(Any, figure.subfigures(2, 1, height_ratios=[3.2, 2.7 * rows]))
    margin, left, right, other_margin = above.subplots(1, 4, width_ratios=[0.3, 1, 1, 0.3])
    grid = below.subplots(rows, COLUMNS, squeeze=False)
    for axes in (margin, other_margin, *grid.flat[len(facts) :]):
        axes.set_axis_off()
    _draw_image(left, picture.pixels / 255, picture.name)
    _draw_cam(right, picture, cam)
    right.set_title(f"Grad-CAM: evidence for\n{answer}", fontsize=TEXT_SIZE)
    for axes, activation, each in zip(grid.flat, activations, facts, strict=False):
        _draw_image(axes, activation)
        axes.set_title(f"channel {each.index}", fontsize=TEXT_SIZE, fontweight="bold", loc="left")
        axes.set_xlabel(f"{each.description}\n{each.region}", fontsize=SMALL_SIZE)
    save_figure(figure, path)


def _draw_image(axes: Axes, values: Array, title: str = "") -> None:
    """Scales ``values`` to their own minimum and maximum; an image without contrast is grey."""
    least, highest = float(values.min()), float(values.max())
    scaled = (values - least) / (highest - least) if highest > least else np.full_like(values, 0.5)
    axes.imshow(scaled, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    if title:
        axes.set_title(title, fontsize=TEXT_SIZE)


def _draw_cam(axes: Axes, picture: Picture, cam: Array) -> None:
    """The picture in grey under a colour scale that can also be read when printed in grey."""
    side = picture.pixels.shape[0]
    plane = Image.fromarray(cam.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    enlarged = np.asarray(plane).clip(0, 1)
    axes.imshow(picture.pixels.mean(axis=2) / 255, cmap="gray", vmin=0, vmax=1)
    overlay = axes.imshow(enlarged, cmap="inferno", vmin=0, vmax=1, alpha=0.35 + 0.4 * enlarged)
    axes.set(xticks=[], yticks=[])
    assert axes.figure
    axes.figure.colorbar(overlay, ax=axes, shrink=0.8, label="share of the highest")


def _draw_responses(axes: Axes, facts: FilterFacts) -> None:
    names, values = zip(*sorted(facts.responses.items(), key=lambda item: item[1])[-5:], strict=True)
    axes.barh(names, values, color=BLUE)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, max(2.0, 1.08 * max(values)))
    axes.tick_params(labelsize=SMALL_SIZE)
    axes.set_title("positive part (RMS), whole picture = 1", fontsize=SMALL_SIZE, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
