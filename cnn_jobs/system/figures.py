"""Figures as PNG."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

from cnn_jobs.system.files import write_bytes

DPI = 110


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """Without matplotlib's version in it: the same figure gives the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def save_figure(figure: Figure, path: Path) -> Path:
    """As PNG, whole or not at all."""
    return write_bytes(path, png(figure))
