"""Measurements of hand-made filters and channels, whose directions, frequencies and colours are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn_jobs.interpret.measurements import (
    FilterFacts,
    colour_name,
    measure_channel,
    measure_filter,
    principal_profile,
    region_responses,
    spectrum_of,
)
from cnn_jobs.interpret.picture import draw_picture

Y, X = np.mgrid[-3:4, -3:4].astype(float)
WINDOW = np.exp(-(X**2 + Y**2) / 8)
NOTHING = np.ones((4, 4))
EVERYWHERE = {"all": np.ones((4, 4), dtype=bool)}


def coloured(profile: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    return np.multiply.outer(np.array(colour, dtype=float), profile)


def measured(profile: np.ndarray, colour: tuple[float, float, float] = (1, 1, 1)) -> FilterFacts:
    return measure_filter(5, coloured(profile, colour), NOTHING, EVERYWHERE)


SOBEL = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=float)


@pytest.mark.parametrize(
    ("profile", "kind", "degrees", "description"),
    [
        (SOBEL, "edge", 90, "vertical edge in brightness"),
        (SOBEL.T, "edge", 0, "horizontal edge in brightness"),
        (WINDOW * np.cos(2 * np.pi * X / 4), "stripes", 90, "vertical stripes in brightness"),
        (WINDOW * np.cos(2 * np.pi * Y / 4), "stripes", 0, "horizontal stripes in brightness"),
        (WINDOW * np.sin(2 * np.pi * X / 4), "edge", 90, "vertical edge in brightness"),
        # Rows count downwards: x + y is constant along lines that rise to the right.
        (WINDOW * np.cos(2 * np.pi * (X + Y) / (4 * 2**0.5)), "stripes", 45, "rising stripes in brightness"),
        (WINDOW * np.cos(2 * np.pi * (X - Y) / (4 * 2**0.5)), "stripes", 135, "falling stripes in brightness"),
    ],
)
def test_direction_of_edges_and_stripes(profile: np.ndarray, kind: str, degrees: float, description: str) -> None:
    facts = measured(profile)
    assert facts.kind == kind
    assert facts.orientation_deg is not None
    assert abs((facts.orientation_deg - degrees + 90) % 180 - 90) < 1
    assert facts.coherence > 0.55  # the minimum is Sobel's, with its hard edges
    assert facts.description.startswith(description)
    assert (facts.index, facts.colour_share) == (5, pytest.approx(1))


@given(degrees=st.floats(0, 179.9), period=st.floats(3.2, 7), phase=st.floats(0, 6.28))
def test_any_direction_and_frequency_is_measured(degrees: float, period: float, phase: float) -> None:
    angle = np.radians(degrees)  # of the stripes; they change across it, and rows count downwards
    grid = np.mgrid[-7:8, -7:8].astype(float)
    across = grid[1] * np.sin(angle) + grid[0] * np.cos(angle)
    profile = np.exp(-(grid[0] ** 2 + grid[1] ** 2) / 32) * np.cos(2 * np.pi * across / period + phase)
    coherence, orientation, frequency = spectrum_of(profile)
    assert abs((orientation - degrees + 90) % 180 - 90) < 4
    assert frequency == pytest.approx(1 / period, abs=0.025)
    assert coherence > 0.6


def test_blobs_are_named_by_colour() -> None:
    facts = measured(WINDOW, (0, 0, 1))
    assert (facts.kind, facts.orientation_deg, facts.frequency) == ("blob", None, 0)
    assert facts.description == "blob in blue"
    assert measured(WINDOW, (-0.4, -0.2, 1)).description == "blob in blue against yellow"
    assert measured(WINDOW, (0.5, 0.6, -1)).description == "blob in yellow against blue"
    assert measured(-WINDOW, (1, 1, 1)).description == "blob in darkness"
    assert measured(-SOBEL, (1, 1, 1)).description.startswith("vertical edge in brightness")


def test_centre_with_surround_is_a_spot_without_direction() -> None:
    ring = np.exp(-(X**2 + Y**2) / 2) - np.exp(-(X**2 + Y**2) / 8) / 4
    facts = measured(ring - ring.mean())
    assert (facts.kind, facts.orientation_deg) == ("spot", None)
    assert facts.frequency > 0


def test_two_colours_in_two_places_are_several_colours() -> None:
    left, right = WINDOW * (X < 0), WINDOW * (X > 0)
    weights = coloured(left, (1, 0, 0)) + coloured(right, (0, 1, 0))
    facts = measure_filter(0, weights, NOTHING, EVERYWHERE)
    assert facts.colour_share == pytest.approx(0.5, abs=0.01)
    assert "several colours" in facts.description


@given(st.integers(0, 10**6))
def test_principal_profile_is_the_nearest_picture_in_one_colour(seed: int) -> None:
    weights = np.random.default_rng(seed).normal(size=(3, 5, 5))
    profile, axis, share = principal_profile(weights)
    rest = weights - np.multiply.outer(axis, profile)
    energy = (weights**2).sum()
    assert np.linalg.norm(axis) == pytest.approx(1)
    assert (rest**2).sum() == pytest.approx((1 - share) * energy)
    other = np.random.default_rng(seed + 1).normal(size=3)
    other /= np.linalg.norm(other)
    fitted = np.tensordot(other, weights, 1)
    assert (fitted**2).sum() <= share * energy + 1e-9
    assert profile.flat[np.abs(profile).argmax()] >= 0


def test_filter_of_zeros() -> None:
    facts = measured(np.zeros((7, 7)))
    assert (facts.coherence, facts.orientation_deg, facts.colour_share) == (0, None, 0)


@pytest.mark.parametrize(
    ("axis", "name"),
    [
        ((1, 1, 1), "brightness"),
        ((0.9, 1, 1.1), "brightness"),
        ((-1, -1, -1), "darkness"),
        ((0, 1, 0), "green"),
        ((1, -0.9, 0.1), "red against green"),
        ((-2, 1, 1), "cyan against red"),
        ((1, 1, -2), "yellow against blue"),
    ],
)
def test_names_of_colours(axis: tuple[float, float, float], name: str) -> None:
    assert colour_name(np.array(axis) / np.linalg.norm(axis)) == name


def test_drawn_picture_has_a_region_for_each_of_the_reports_filters() -> None:
    picture = draw_picture()
    pixels = picture.pixels / 255 - 0.5

    def strongest(profile: np.ndarray, colour: tuple[float, float, float]) -> str:
        weights = coloured(profile - (profile.mean() if colour == (1, 1, 1) else 0), colour)
        activation = np.zeros((218, 218))
        for (channel, dy, dx), weight in np.ndenumerate(weights):
            activation += weight * pixels[dy : dy + 218, dx : dx + 218, channel]
        responses = region_responses(activation, picture.regions)
        return max(responses, key=lambda name: responses[name])

    for profile, colour, region in (
        (WINDOW * np.cos(2 * np.pi * X / 7), (1, 1, 1), "vertical stripes"),
        (WINDOW * np.cos(2 * np.pi * Y / 7), (1, 1, 1), "horizontal stripes"),
        (WINDOW * np.cos(2 * np.pi * (X + Y) / 10), (1, 1, 1), "diagonal stripes"),
        (WINDOW, (-0.4, -0.2, 1), "blue sky"),
        (WINDOW, (0.5, 0.6, -1), "yellow grass"),
    ):
        assert strongest(profile, colour) == region


def test_responses_are_relative_to_the_whole_picture() -> None:
    activation = np.zeros((4, 4))
    activation[:2], activation[2:] = 3, -5  # a ReLU lets nothing of the latter through
    masks = {"top": np.zeros((8, 8), bool), "bottom": np.zeros((8, 8), bool), "none": np.zeros((8, 8), bool)}
    masks["top"][:4], masks["bottom"][4:] = True, True
    assert region_responses(activation, masks) == {"top": pytest.approx(2**0.5), "bottom": 0, "none": 0}
    assert region_responses(np.zeros((4, 4)), masks)["top"] == 0


def test_measurements_of_a_channel() -> None:
    plane = np.zeros((4, 4))
    plane[0, 3], plane[3, 0] = 4, 1
    facts = measure_channel(7, plane, draw_picture())
    assert (facts.index, facts.sparsity, facts.highest, facts.area) == (7, 14 / 16, 4, 1 / 16)
    assert facts.peak == (0.125, 0.875)
    assert facts.region == "blue sky"
    assert facts.description == "88% zero, above half in 6%"
    assert measure_channel(0, np.zeros((4, 4)), draw_picture()).description == "silent"
