"""A channel of a last layer, measured: how much of it is silent, and where in the picture it is not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cnn_jobs.interpret.filters import region_responses
from cnn_jobs.interpret.picture import Picture

Plane = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ChannelFacts:
    """``sparsity``: share of places where it is zero; ``area``: share where it is above half its highest value;
    ``peak``: (row, column) of that, as fractions of the picture from top left; ``region``: where it is strongest."""

    index: int
    sparsity: float
    highest: float
    area: float
    peak: tuple[float, float]
    region: str

    def words(self) -> str:
        """In a few words."""
        if self.highest <= 0:
            return "silent"
        return f"{self.sparsity:.0%} zero, above half in {self.area:.0%}"


def measure_channel(index: int, activation: Plane, picture: Picture) -> ChannelFacts:
    """Of one channel's activation (H, W), after its ReLU."""
    highest = float(activation.max())
    row, column = np.unravel_index(int(activation.argmax()), activation.shape)
    height, width = activation.shape
    responses = region_responses(activation, picture.regions)
    return ChannelFacts(
        index=index,
        sparsity=float((activation <= 0).mean()),
        highest=highest,
        area=float((activation > highest / 2).mean()) if highest > 0 else 0.0,
        peak=((int(row) + 0.5) / height, (int(column) + 0.5) / width),
        region=max(responses, key=lambda name: responses[name]) if highest > 0 else "",
    )
