"""Plotting: the one palette of all plots, and PNG files."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from cnn_jobs.system.files import write_bytes

matplotlib.rcdefaults()  # a user's matplotlibrc would change every plot

# Okabe and Ito's palette (jfly.uni-koeln.de/color), which colour-blind readers can distinguish.
BLACK, ORANGE, SKY_BLUE, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
# In place of its yellow, which is too light for a line.
OLIVE = "#7A6A00"
GREY = "#555555"  # marks that belong to no group
PALETTE = (BLACK, ORANGE, SKY_BLUE, GREEN, BLUE, VERMILION, PURPLE, OLIVE)
DPI = 110


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """The figure as PNG. Without matplotlib's version in it, so that the same figure gives the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes the figure as PNG, atomically; returns ``path``."""
    return write_bytes(path, png(figure))
