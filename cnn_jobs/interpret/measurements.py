"""Measurements of filters and channels: direction, frequency, colour, sparsity, and the regions they respond to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cnn_jobs.interpret.picture import Mask, Picture

Array = npt.NDArray[np.float64]
SPECTRUM_SIDE = 64  # of the zero-padded Fourier transform
MIN_COHERENCE = 0.5  # below it a pattern has no direction
MIN_COLOUR_SHARE = 0.8  # below it a filter has several colours

# Directions in RGB with their names, forwards and backwards: brightness, single channels, opponent colours.
_COLOURS: dict[tuple[float, float, float], tuple[str, str]] = {
    (1, 1, 1): ("brightness", "darkness"),
    (1, 0, 0): ("red", "lack of red"),
    (0, 1, 0): ("green", "lack of green"),
    (0, 0, 1): ("blue", "lack of blue"),
    (2, -1, -1): ("red against cyan", "cyan against red"),
    (-1, 2, -1): ("green against magenta", "magenta against green"),
    (-1, -1, 2): ("blue against yellow", "yellow against blue"),
    (1, -1, 0): ("red against green", "green against red"),
    (1, 0, -1): ("red against blue", "blue against red"),
    (0, 1, -1): ("green against blue", "blue against green"),
}
_DIRECTIONS = {0: "horizontal ", 45: "rising ", 90: "vertical ", 135: "falling "}


@dataclass(frozen=True)
class FilterFacts:
    """Measurements of one filter.

    ``kind``: edge, stripes, blob (passes low frequencies) or spot (centre and surround). ``orientation_deg``: of edges
    and stripes, counter-clockwise from horizontal, in [0, 180), else ``None``. ``coherence``: how much one direction
    dominates, in [0, 1]. ``frequency``: of the strongest wave, in cycles per pixel. ``colour``: the direction in RGB
    that holds most of the energy; ``colour_share``: its share. ``responses``: see ``region_responses``.
    """

    index: int
    kind: str
    orientation_deg: float | None
    coherence: float
    frequency: float
    colour: str
    colour_share: float
    responses: Mapping[str, float]

    @property
    def region(self) -> str:
        """The region with the strongest response."""
        return max(self.responses, key=lambda name: self.responses[name])

    @property
    def description(self) -> str:
        """For example ``vertical stripes in brightness, 4.0 px a period``."""
        direction = ""
        colour = self.colour if self.colour_share >= MIN_COLOUR_SHARE else "several colours"
        if self.orientation_deg is not None:
            direction = _DIRECTIONS[round(self.orientation_deg / 45) * 45 % 180]
            colour = colour.replace("darkness", "brightness")  # edges and stripes have both
        period = f", {1 / self.frequency:.1f} px a period" if self.frequency > 0 else ""
        return f"{direction}{self.kind} in {colour}{period}"

    def cells(self) -> dict[str, str]:
        """The table row: column titles and texts."""
        return {
            "filter": str(self.index),
            "kind": self.kind,
            "orientation (degrees)": "" if self.orientation_deg is None else f"{self.orientation_deg:.1f}",
            "coherence": f"{self.coherence:.3f}",
            "frequency (cycles/px)": f"{self.frequency:.4f}",
            "colour": self.colour,
            "colour share": f"{self.colour_share:.3f}",
            "strongest in": self.region,
            **{name: f"{response:.3f}" for name, response in self.responses.items()},
        }


def measure_filter(index: int, weights: Array, activation: Array, regions: Mapping[str, Mask]) -> FilterFacts:
    """Measures a filter: its weights (channels, k, k), its activation (H, W), masks of the regions, of any one size."""
    profile, axis, colour_share = principal_profile(weights)
    coherence, orientation, frequency = spectrum_of(profile)
    return FilterFacts(
        index=index,
        kind=_kind(profile, coherence, frequency),
        orientation_deg=orientation if coherence >= MIN_COHERENCE else None,
        coherence=coherence,
        frequency=frequency,
        colour=colour_name(axis) if len(weights) == 3 else "many channels",
        colour_share=colour_share,
        responses=region_responses(activation, regions),
    )


@dataclass(frozen=True)
class ChannelFacts:
    """Measurements of one channel after its ReLU.

    ``sparsity``: share of positions that are zero. ``area``: share of positions above half the highest value. ``peak``:
    (row, column) of the highest value, as fractions of the picture from top left. ``region``: where it is strongest,
    "" for a channel that is zero everywhere.
    """

    index: int
    sparsity: float
    highest: float
    area: float
    peak: tuple[float, float]
    region: str

    @property
    def description(self) -> str:
        """For example ``88% zero, above half in 6%``."""
        return f"{self.sparsity:.0%} zero, above half in {self.area:.0%}" if self.highest > 0 else "silent"

    def cells(self) -> dict[str, str]:
        """The table row: column titles and texts."""
        return {
            "channel": str(self.index),
            "share zero": f"{self.sparsity:.3f}",
            "highest": f"{self.highest:.3f}",
            "share above half": f"{self.area:.3f}",
            "peak (row)": f"{self.peak[0]:.3f}",
            "peak (column)": f"{self.peak[1]:.3f}",
            "strongest in": self.region,
        }


def measure_channel(index: int, activation: Array, picture: Picture) -> ChannelFacts:
    """Measures a channel by its activation (H, W) after its ReLU."""
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


def principal_profile(weights: Array) -> tuple[Array, Array, float]:
    """The picture (k, k) and colour (channels,) whose product is nearest to a filter, and its share of the energy.

    The first term of a singular value decomposition. The colour has length 1; the picture is positive where its
    absolute value is largest.
    """
    channels, height, width = weights.shape
    left, values, right = np.linalg.svd(weights.reshape(channels, -1), full_matrices=False)
    sign = 1.0 if right[0][np.abs(right[0]).argmax()] >= 0 else -1.0
    energy = float((values**2).sum())
    share = float(values[0] ** 2 / energy) if energy else 0.0
    return sign * values[0] * right[0].reshape(height, width), sign * left[:, 0], share


def spectrum_of(profile: Array) -> tuple[float, float, float]:
    """Coherence in [0, 1], orientation in degrees and frequency in cycles per pixel of a pattern (k, k).

    Coherence and orientation come from the second moments of the power spectrum, the frequency from its peak.
    """
    power = np.abs(np.fft.fft2(profile, (SPECTRUM_SIDE, SPECTRUM_SIDE))) ** 2
    # Rows of a picture count downwards; the vertical axis points up.
    vertical, horizontal = -np.fft.fftfreq(SPECTRUM_SIDE)[:, None], np.fft.fftfreq(SPECTRUM_SIDE)[None, :]
    xx, yy = float((power * horizontal**2).sum()), float((power * vertical**2).sum())
    xy = float((power * horizontal * vertical).sum())
    total = xx + yy
    coherence = float(np.hypot(xx - yy, 2 * xy) / total) if total else 0.0
    across = 0.5 * np.degrees(np.arctan2(2 * xy, xx - yy))  # the direction of change
    row, column = np.unravel_index(int(power.argmax()), power.shape)
    frequency = float(np.hypot(vertical[row, 0], horizontal[0, column]))
    return coherence, float((across + 90) % 180), frequency


def colour_name(axis: Array) -> str:
    """The name of the direction in RGB that is nearest to ``axis`` (3,)."""

    def cosine(direction: tuple[float, float, float]) -> float:
        return float(np.array(direction) @ axis) / float(np.linalg.norm(direction))

    nearest = max(_COLOURS, key=lambda direction: abs(cosine(direction)))
    return _COLOURS[nearest][cosine(nearest) < 0]


def region_responses(activation: Array, regions: Mapping[str, Mask]) -> dict[str, float]:
    """Root mean square of an activation (H, W) in each region, relative to the whole picture.

    Only the positive part counts: it is what a ReLU lets through.
    """
    activation = np.maximum(activation, 0)
    whole = float(np.sqrt((activation**2).mean()))
    height, width = activation.shape
    responses = {}
    for name, mask in regions.items():
        rows = np.arange(height) * mask.shape[0] // height
        columns = np.arange(width) * mask.shape[1] // width
        part = activation[mask[np.ix_(rows, columns)]]
        responses[name] = float(np.sqrt((part**2).mean())) / whole if whole and part.size else 0.0
    return responses


def _kind(profile: Array, coherence: float, frequency: float) -> str:
    if coherence < MIN_COHERENCE:
        return "blob" if frequency < 1 / (2 * min(profile.shape)) else "spot"
    odd = (profile - profile[::-1, ::-1]) / 2  # the part that changes its sign when turned by 180 degrees
    return "edge" if float((odd**2).sum()) > 0.5 * float((profile**2).sum()) else "stripes"
