"""Filters, activations and where the network looks, as pictures for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cnn_jobs.interpret.measurements import ChannelFacts, FilterFacts
from cnn_jobs.interpret.picture import Picture
from cnn_jobs.system.figures import BLUE, save_figure

Array = npt.NDArray[np.float64]
TEXT_SIZE, SMALL_SIZE = 10, 8.5


def scaled(values: Array) -> Array:
    """To [0, 1] by their own least and highest value; 0.5 everywhere where there is no difference."""
    least, highest = float(values.min()), float(values.max())
    return (values - least) / (highest - least) if highest > least else np.full_like(values, 0.5)


def plot_filters(
    picture: Picture,
    title: str,
    weights: Sequence[Array],
    activations: Sequence[Array],
    facts: Sequence[FilterFacts],
    path: Path,
) -> Path:
    """A row a filter: its weights, its activation in grey, and how it reacts to the picture's regions.

    weights: (C, k, k) each; activations: (H, W) each. Every panel is scaled to its own least and highest value.
    """
    rows = len(facts)
    figure = Figure(figsize=(9.6, 2.35 * rows + 2.9), layout="constrained")
    figure.suptitle(title, fontsize=13)
    above, below = cast(Any, figure.subfigures(2, 1, height_ratios=[2.4, 2.35 * rows]))
    _show_picture(above, picture)
    grid = below.subplots(rows, 3, squeeze=False, width_ratios=[1, 1.35, 1.5])
    for (left, middle, right), kernel, activation, each in zip(grid, weights, activations, facts, strict=True):
        _image(left, kernel.transpose(1, 2, 0) if len(kernel) == 3 else np.linalg.norm(kernel, axis=0))
        left.set_ylabel(f"filter {each.index}", fontsize=TEXT_SIZE + 1, fontweight="bold")
        left.set_title(each.words().replace(" in ", "\nin ", 1), fontsize=SMALL_SIZE, loc="left")
        _image(middle, activation)
        middle.set_title("activation", fontsize=SMALL_SIZE, loc="left")
        _bars(right, each)
    return save_figure(figure, path)


def plot_channels(
    picture: Picture,
    title: str,
    activations: Sequence[Array],
    facts: Sequence[ChannelFacts],
    answer: str,
    cam: Array,
    path: Path,
) -> Path:
    """The picture, what the answer rests on, and the channels' activations in grey, five a row."""
    columns = 5
    rows = -(-len(facts) // columns)
    figure = Figure(figsize=(10, 2.7 * rows + 3.7), layout="constrained")
    figure.suptitle(title, fontsize=13)
    above, below = cast(Any, figure.subfigures(2, 1, height_ratios=[3.2, 2.7 * rows]))
    edges = above.subplots(1, 4, width_ratios=[0.3, 1, 1, 0.3])
    _, left, right, _ = edges
    for axes in edges[[0, 3]]:
        axes.set_axis_off()
    _image(left, picture.pixels / 255)
    left.set_title(picture.name, fontsize=TEXT_SIZE)
    _overlay(right, picture, cam)
    right.set_title(f"Grad-CAM: what speaks for\n{answer}", fontsize=TEXT_SIZE)
    grid = below.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, activation, each in zip(grid.flat, activations, facts, strict=False):
        axes.set_axis_on()
        _image(axes, activation)
        axes.set_title(f"channel {each.index}", fontsize=TEXT_SIZE, fontweight="bold", loc="left")
        axes.set_xlabel(f"{each.words()}\n{each.region}", fontsize=SMALL_SIZE)
    return save_figure(figure, path)


def _show_picture(figure: Figure, picture: Picture) -> None:
    axes = figure.subplots()
    _image(axes, picture.pixels / 255)
    axes.set_title(picture.name, fontsize=TEXT_SIZE)


def _image(axes: Axes, values: Array) -> None:
    axes.imshow(scaled(values), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def _overlay(axes: Axes, picture: Picture, cam: Array) -> None:
    """The picture in grey, and over it what counts, in a colour scale that is legible in grey, too."""
    side = picture.pixels.shape[0]
    plane = Image.fromarray(cam.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    grown = np.asarray(plane).clip(0, 1)
    axes.imshow(picture.pixels.mean(axis=2) / 255, cmap="gray", vmin=0, vmax=1)
    shown = axes.imshow(grown, cmap="inferno", vmin=0, vmax=1, alpha=0.35 + 0.4 * grown)
    axes.set(xticks=[], yticks=[])
    assert axes.figure
    axes.figure.colorbar(shown, ax=axes, shrink=0.8, label="share of the highest")


def _bars(axes: Axes, facts: FilterFacts) -> None:
    ordered = sorted(facts.responses.items(), key=lambda item: item[1])[-5:]
    names, values = [name for name, _ in ordered], [value for _, value in ordered]
    axes.barh(names, values, color=BLUE)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, max(2.0, 1.08 * max(values)))
    axes.tick_params(labelsize=SMALL_SIZE)
    axes.set_title("positive part (RMS), whole picture = 1", fontsize=SMALL_SIZE, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
