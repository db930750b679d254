"""The picture that a network is shown: a photograph or a drawn one, and the regions it is divided into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from cnn_jobs.errors import DataError

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

SIDE = 224
STRIPE_PERIOD = 16  # pixels, at 224 pixels a side
SKY, GRASS = (96, 160, 232), (222, 190, 70)
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


@dataclass(frozen=True, eq=False)
class Picture:
    """``pixels``: (side, side, 3) uint8, sRGB; ``regions``: masks (side, side) by name; ``name``: for titles."""

    name: str
    pixels: Pixels
    regions: Mapping[str, Mask]


def open_picture(path: Path, side: int = SIDE) -> Picture:
    """A photograph, its shorter side resized to ``side`` and the centre cropped; its regions are a 3x3 grid.

    Raises ``DataError`` (exit 2) if the file is missing or not a readable picture.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; --image takes a picture, without it one is drawn") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable picture ({type(error).__name__}); --image takes one") from error
    scale = side / min(image.size)
    size = tuple(max(side, round(length * scale)) for length in image.size)
    image = image.resize((size[0], size[1]), Image.Resampling.BILINEAR)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    pixels = np.asarray(image.crop((left, top, left + side, top + side)))
    edges = np.arange(side) * 3 // side
    regions = {
        f"{rows} {columns}": np.logical_and.outer(edges == row, edges == column)
        for row, rows in enumerate(ROWS)
        for column, columns in enumerate(COLUMNS)
    }
    return Picture(path.name, pixels, regions)


def draw_picture(side: int = SIDE) -> Picture:
    """The features of a zebra on a meadow, separated: stripes in three directions, blue sky, yellow grass.

    Every call returns the same bytes.
    """
    y, x = np.mgrid[0:side, 0:side].astype(np.float64)
    period = STRIPE_PERIOD * side / SIDE
    pixels = np.empty((side, side, 3))
    sky = y < 0.26 * side
    grass = y >= 0.76 * side
    body = ~sky & ~grass
    # The sky becomes paler towards the horizon, the grass darker towards the front and slightly textured.
    pixels[sky] = np.array(SKY) + np.outer((y[sky] / (0.26 * side)), (60, 40, 10))
    blades = 14 * np.sin(2 * np.pi * (x + 0.35 * y) / (0.4 * period)) * np.sin(2 * np.pi * y / (1.7 * period))
    pixels[grass] = np.array(GRASS) + np.outer(blades[grass] - 25 * (y[grass] / side - 0.76), (1, 1, 0.5))
    third = np.minimum((x * 3 / side).astype(int), 2)
    phases = {"vertical stripes": x, "horizontal stripes": y, "diagonal stripes": (x + y) / np.sqrt(2)}
    regions: dict[str, Mask] = {"blue sky": sky}
    for number, (name, phase) in enumerate(phases.items()):
        region = body & (third == number)
        # Square waves with soft edges, like stripes of fur.
        wave = np.tanh(3 * np.sin(2 * np.pi * phase[region] / period))
        pixels[region] = np.outer(128 + 110 * wave, (1.0, 1.0, 0.97))
        regions[name] = region
    regions["yellow grass"] = grass
    return Picture("drawn picture", pixels.clip(0, 255).round().astype(np.uint8), regions)
