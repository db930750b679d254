"""A channel of a last layer, measured: how much of it is silent, and where in the picture it is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cnn_jobs.interpret.picture import Mask, Picture

Plane = npt.NDArray[np.float64]
SPECTRUM = 64  # side of the zero-padded Fourier transform
# Below these a pattern is a spot, has no direction.
ORIENTED, ONE_COLOUR = 0.5, 0.8

# Directions in RGB and their names, forwards and backwards: brightness, single channels and pairs of opponents.
_AXES: dict[tuple[float, float, float], tuple[str, str]] = {
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


@dataclass(frozen=True)
class FilterFacts:
    """``orientation_deg``: of edges and stripes, counter-clockwise from horizontal, in [0, 180), ``None`` for a spot
    or blob; ``coherence``: how much there is of a direction, in [0, 1]; ``frequency``: of the strongest wave, in
    cycles a pixel; ``colour``: the axis in RGB along which it weighs; ``colour_share``: part of its energy on that
    axis; ``responses``: see ``region_responses``."""

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
        """The region that it reacts to most."""
        return max(self.responses, key=lambda name: self.responses[name])

    def words(self) -> str:
        """In a few words."""
        where = {None: "", 0: "horizontal ", 90: "vertical ", 45: "rising ", 135: "falling "}
        nearest = None if self.orientation_deg is None else round(self.orientation_deg / 45) * 45 % 180
        size = f", {1 / self.frequency:.1f} px a period" if self.frequency > 0 else ""
        colour = "several colours" if self.colour_share < ONE_COLOUR else self.colour
        if self.orientation_deg is not None and colour == "darkness":
            colour = "brightness"  # edges and stripes have both
        return f"{where[nearest]}{self.kind} in {colour}{size}"


def measure_filter(
    index: int, weights: npt.NDArray[np.float64], activation: Plane, regions: Mapping[str, Mask]
) -> FilterFacts:
    """Of one filter: weights (channels, k, k), its activation (H, W), regions as masks of any one size."""
    profile, axis, share = principal_profile(weights)
    coherence, orientation, frequency = spectrum_of(profile)
    colour = colour_name(axis) if len(weights) == 3 else "many channels"
    kind = _kind(profile, coherence, frequency)
    return FilterFacts(
        index,
        kind,
        orientation if coherence >= ORIENTED else None,
        coherence,
        frequency,
        colour,
        share,
        region_responses(activation, regions),
    )


def principal_profile(weights: npt.NDArray[np.float64]) -> tuple[Plane, npt.NDArray[np.float64], float]:
    """The one picture (k, k) times one colour (channels,) that is nearest to the filter, and its share of the energy.

    The first term of a singular value decomposition; the colour is of length 1, and the one at the picture's strongest
    place.
    """
    channels, height, width = weights.shape
    left, values, right = np.linalg.svd(weights.reshape(channels, -1), full_matrices=False)
    sign = 1.0 if right[0][np.abs(right[0]).argmax()] >= 0 else -1.0
    energy = float((values**2).sum())
    share = float(values[0] ** 2 / energy) if energy else 0.0
    return sign * values[0] * right[0].reshape(height, width), sign * left[:, 0], share


def spectrum_of(profile: Plane) -> tuple[float, float, float]:
    """Coherence in [0, 1], orientation in degrees and frequency in cycles a pixel of a pattern (k, k).

    Orientation and coherence are those of the second moments of the power spectrum; the frequency is its peak's.
    """
    power = np.abs(np.fft.fft2(profile, (SPECTRUM, SPECTRUM))) ** 2
    # Rows count downwards in a picture: the vertical axis points up.
    vertical, horizontal = -np.fft.fftfreq(SPECTRUM)[:, None], np.fft.fftfreq(SPECTRUM)[None, :]
    xx, yy = float((power * horizontal**2).sum()), float((power * vertical**2).sum())
    xy = float((power * horizontal * vertical).sum())
    total = xx + yy
    coherence = float(np.hypot(xx - yy, 2 * xy) / total) if total else 0.0
    across = 0.5 * np.degrees(np.arctan2(2 * xy, xx - yy))  # direction in which it changes
    row, column = np.unravel_index(int(power.argmax()), power.shape)
    frequency = float(np.hypot(vertical[row, 0], horizontal[0, column]))
    return coherence, float((across + 90) % 180), frequency


def colour_name(axis: npt.NDArray[np.float64]) -> str:
    """The named direction in RGB that is nearest to ``axis`` (3,)."""

    def cosine(direction: tuple[float, float, float]) -> float:
        return float(np.array(direction) @ axis) / float(np.linalg.norm(direction))

    nearest = max(_AXES, key=lambda direction: abs(cosine(direction)))
    return _AXES[nearest][cosine(nearest) < 0]


def region_responses(activation: Plane, regions: Mapping[str, Mask]) -> dict[str, float]:
    """Root mean square of an activation (H, W) in each region, over that in the whole picture; of its positive part,
    which is what a ReLU lets through."""
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


def _kind(profile: Plane, coherence: float, frequency: float) -> str:
    side = min(profile.shape)
    if coherence < ORIENTED:
        return "blob" if frequency < 1 / (2 * side) else "spot"
    turned = profile[::-1, ::-1]
    odd = float((((profile - turned) / 2) ** 2).sum())
    return "edge" if odd > 0.5 * float((profile**2).sum()) else "stripes"


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
