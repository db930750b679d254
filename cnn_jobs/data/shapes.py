"""``shapes``: a small learning problem that the package draws itself, with the same bytes on every machine.

Ten kinds of figures, 32x32 RGB, each at a random place, size, angle and colour, with two smaller figures as clutter,
and noise. All is integer arithmetic on the raw bits of a generator: floating-point sines differ between machines, and
numpy guarantees the raw stream of a bit generator, but not its distributions.

Difficulty (torch 2.14.1, AMD EPYC, one thread, 10 epochs): task2 (SGD), best model, test accuracy 0.698 (mean of seeds
0-2: 0.708, 0.694, 0.691). Last model, only seed 0, train / test accuracy: task3d-batchnorm 1.000 / 0.797, task3d-plain
0.928 / 0.800, task3-arch2 (BatchNorm and dropout) 0.975 / 0.805. After 5 epochs task3d-batchnorm is at 0.771. Training
accuracies are of 2,000 images. The test set has 1,000: a standard error of 0.013 to 0.015.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cnn_jobs.data.dataset import Dataset

NAME = "shapes"
CLASSES = (
    "circle", "ring", "square", "frame", "triangle", "cross", "star", "crescent", "stripes", "checkerboard",
)  # fmt: skip
SIDE = 32
TRAIN_IMAGES, TEST_IMAGES = 6000, 1000

_Ints = npt.NDArray[np.int32]
_Bools = npt.NDArray[np.bool_]

_UNIT = 256  # the radius of a figure, in its own coordinates
_SUBPIXELS = 8  # the unit of centres and radii below: an eighth of a pixel
_RADII, _CLUTTER_RADII = (40, 88), (16, 36)
_CENTRES, _CLUTTER_CENTRES = (80, 176), (0, 256)
_CLUTTER = 2
# Figures are mostly brighter than their background, but the ranges overlap: some are hard to see.
_FIGURE_COLOURS, _CLUTTER_COLOURS, _BACKGROUND_COLOURS = (60, 255), (30, 190), (0, 160)
_NOISE = 80  # half the width of its triangular distribution
# A hint of colour that each class has, as ships have blue around them: added to (red, green, blue).
_TINTS = np.array(
    [(48, 0, -48), (48, -48, 0), (0, 48, -48), (-48, 48, 0), (-48, 0, 48),
     (0, -48, 48), (48, 0, 0), (0, 48, 0), (0, 0, 48), (0, 0, 0)],
    dtype=np.int32,
)  # fmt: skip

_TURNS = 64
# Rounded to ten bits, so that the last digit of a cosine does not matter.
_COSINES = np.array([round(1024 * math.cos(math.tau * turn / _TURNS)) for turn in range(_TURNS)], dtype=np.int32)
_SINES = np.roll(_COSINES, _TURNS // 4)
_BLOCK = 500  # images drawn at a time: few enough for the CPU's cache; it decides the bytes


class _Draw:
    """Random integers from the raw bits of PCG64."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.PCG64(seed)

    def between(self, low: int, high: int, *shape: int) -> _Ints:
        """Uniform in [low, high], both included."""
        bits = self._raw(math.prod(shape)) >> np.uint64(32)
        return (low + (bits * np.uint64(high - low + 1) >> np.uint64(32)).astype(np.int32)).reshape(shape)

    def noise(self, *shape: int) -> npt.NDArray[np.int16]:
        """Triangular in [-255, 255]: the sum of two bytes, centred."""
        one, two = (self._bytes(math.prod(shape)).reshape(shape) for _ in range(2))
        return np.add(one, two, dtype=np.int16) - np.int16(255)

    def _bytes(self, count: int) -> npt.NDArray[np.uint8]:
        return self._raw(-(-count // 8)).astype("<u8", copy=False).view(np.uint8)[:count]

    def _raw(self, count: int) -> npt.NDArray[np.uint64]:
        return np.asarray(self._generator.random_raw(count), dtype=np.uint64)


def draw_shapes(train_images: int = TRAIN_IMAGES, test_images: int = TEST_IMAGES) -> Dataset:
    """The data set ``shapes``: (N, 3, 32, 32) images, always the same, of ten classes in equal number.

    Raises ``DataError`` if a number of images is 0.
    """
    train, test = _split(train_images, seed=1), _split(test_images, seed=2)
    return Dataset.from_arrays(name=NAME, uri=NAME, classes=CLASSES, train=train, test=test, synthetic=True)


def _split(count: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    draw = _Draw(seed)
    labels = np.arange(count, dtype=np.int64) % len(CLASSES)
    images = np.empty((count, 3, SIDE, SIDE), dtype=np.uint8)
    for start in range(0, count, _BLOCK):
        images[start : start + _BLOCK] = _images(draw, labels[start : start + _BLOCK])
    return images, labels


def _images(draw: _Draw, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int16]:
    """One image a label, (N, 3, 32, 32) in [0, 255]."""
    count = len(labels)
    colours = np.clip(draw.between(*_FIGURE_COLOURS, count, 3) + _TINTS[labels], 0, 255)
    canvas = _background(draw, count)
    for _ in range(_CLUTTER):
        kinds = draw.between(0, len(CLASSES) - 1, count)
        clutter = draw.between(*_CLUTTER_COLOURS, count, 3)
        _paint(canvas, draw, kinds, clutter, _CLUTTER_RADII, _CLUTTER_CENTRES)
    _paint(canvas, draw, labels, colours, _RADII, _CENTRES)
    canvas += draw.noise(*canvas.shape) * np.int16(_NOISE) // np.int16(256)
    np.clip(canvas, 0, 255, out=canvas)
    return canvas


def _background(draw: _Draw, count: int) -> npt.NDArray[np.int16]:
    """A linear gradient for each image, (N, 3, 32, 32)."""
    colours = draw.between(*_BACKGROUND_COLOURS, count, 3)[:, :, None, None]
    slopes = draw.between(-3, 3, count, 3, 2)[..., None, None]
    ramp = np.arange(SIDE, dtype=np.int32) - SIDE // 2
    canvas: _Ints = colours + slopes[:, :, 0] * ramp[:, None] + slopes[:, :, 1] * ramp
    return canvas.astype(np.int16)


def _paint(
    canvas: npt.NDArray[np.int16],
    draw: _Draw,
    kinds: npt.NDArray[np.integer],
    colours: _Ints,
    radii: tuple[int, int],
    centres: tuple[int, int],
) -> None:
    """Draws one figure into each image: ``kinds`` (N,) index ``CLASSES``, ``colours`` are (N, 3)."""
    centre = draw.between(*centres, len(kinds), 2)
    radius = draw.between(*radii, len(kinds))
    turn = draw.between(-_TURNS // 2, _TURNS // 2 - 1, len(kinds)) % _TURNS
    axis = np.arange(SIDE, dtype=np.int32) * _SUBPIXELS + _SUBPIXELS // 2  # centres of the pixels
    for kind, name in enumerate(CLASSES):
        rows = np.flatnonzero(kinds == kind)
        x = axis[None, None, :] - centre[rows, 0, None, None]
        y = axis[None, :, None] - centre[rows, 1, None, None]
        cosine, sine = _COSINES[turn[rows], None, None], _SINES[turn[rows], None, None]
        shrink = radius[rows, None, None] * (1024 // _UNIT)
        inside = _inside(name, (x * cosine + y * sine) // shrink, (y * cosine - x * sine) // shrink)
        canvas[rows] = np.where(inside[:, None], colours[rows, :, None, None].astype(np.int16), canvas[rows])


def _inside(figure: str, u: _Ints, v: _Ints) -> _Bools:
    """Which points (N, H, W) lie inside the figure, in its own rotated coordinates (radius ``_UNIT``)."""
    square = u * u + v * v
    disc = square < _UNIT**2
    wide = np.maximum(abs(u), abs(v))
    figures: dict[str, Callable[[], _Bools]] = {
        "circle": lambda: disc,
        "ring": lambda: disc & (square > 150**2),
        "square": lambda: wide < 215,
        "frame": lambda: (wide < 215) & (wide > 125),
        "triangle": lambda: (v > -128) & (1774 * abs(u) + 1024 * v < 1024 * _UNIT),  # 1774/1024 = sqrt(3)
        "cross": lambda: (np.minimum(abs(u), abs(v)) < 75) & (wide < 240),
        "star": lambda: disc & (abs(u * v) < 64**2),
        "crescent": lambda: disc & ((u - 110) ** 2 + v * v > 190**2),
        "stripes": lambda: disc & (u // 80 % 2 == 0),
        "checkerboard": lambda: disc & ((u // 112 + v // 112) % 2 == 0),
    }
    return figures[figure]()
