"""Task 1 of the course, arithmetic of convolutional networks: each answer computed, and compared with the report's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from cnn_jobs.networks.table import describe, kernels_between, same_padding, total_parameters, window_output_size
from cnn_jobs.tasks import get_task

Matrix = Sequence[Sequence[int]]
IMAGE = ((1, 0, 2, 3, 1), (3, 2, 0, 7, 0), (0, 6, 1, 1, 4))
SOBEL = ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))
# The course report's answers to 1a and 1g.
REPORTED_COLUMN, REPORTED_PARAMETERS = [2, 10, 14], 390_186


@dataclass(frozen=True)
class Answer:
    """One part: question, working (one line per step), answer, and the course report's answer.

    ``mistake``: why the course report is wrong, "" if it is right.
    """

    part: str
    question: str
    working: tuple[str, ...]
    answer: str
    report: str
    mistake: str = ""

    @property
    def short(self) -> str:
        """The answer in one line."""
        return " / ".join(" ".join(line.split()) for line in self.answer.splitlines())

    @property
    def verdict(self) -> str:
        """Whether the course report is right, and if not, why."""
        return f"wrong: {self.mistake}" if self.mistake else "right"


def answers() -> list[Answer]:
    """All parts, in order."""
    return [_convolution(), _translation(), *_sizes(), _parameters()]


def as_markdown(parts: Sequence[Answer]) -> str:
    """All parts as one page."""
    lines = ["# Task 1", ""]
    for each in parts:
        lines += [f"## {each.part}", "", each.question, "", "```", *each.working, "```", ""]
        lines += ["Answer:", "", "```", each.answer, "```", "", f"Course report: {each.report} - {each.verdict}.", ""]
    return "\n".join(lines)


def _convolution() -> Answer:
    result = cross_correlate(IMAGE, SOBEL, padding=1)
    column = [row[0] for row in result]
    padded = np.pad(IMAGE, 1)
    products = [f"{weight}*{pixel}" for weight, pixel in zip(np.ravel(SOBEL), padded[:3, :3].flat, strict=True)]
    working = (
        "the image, padded with zeros to 5x7:",
        *(f"    {line}" for line in _aligned(padded.tolist())),
        "the kernel is placed on each 3x3 window, unflipped, as in a convolutional layer; top left:",
        f"    {' + '.join(products)} = {result[0][0]}",
        "(flipped, as mathematics defines convolution, this kernel would give each number with the opposite sign)",
    )
    return Answer(
        "1a",
        "Convolve the 3x5 image with the Sobel kernel, zero padding 1.",
        working,
        "\n".join(_aligned(result)),
        f"first column {', '.join(map(str, REPORTED_COLUMN))}",
        "" if column == REPORTED_COLUMN else f"the first column is {', '.join(map(str, column))}",
    )


def _translation() -> Answer:
    image, moved = (0, 9, 0, 0, 0, 0, 0, 0), (9, 0, 0, 0, 0, 0, 0, 0)
    edge = (1, -1)
    convolved = [cross_correlate((row,), (edge,))[0] for row in (image, moved)]
    pooled = [max_pool((row, row), 2, 2)[0] for row in (image, moved)]  # two equal rows: the window is square
    equal = convolved[0] == convolved[1], pooled[0] == pooled[1]
    outcome = ["the same" if each else "another result" for each in equal]
    working = (
        f"a row of pixels, {image}, and the same row moved by one, {moved}:",
        f"    convolved with {edge}: {convolved[0]} and {convolved[1]}: {outcome[0]}",
        f"    max pooled, 2 with stride 2: {pooled[0]} and {pooled[1]}: {outcome[1]}",
        "a convolution moves with its image (it is equivariant); a maximum is unchanged by a shift inside its window",
    )
    layer = {(False, True): "pooling", (True, False): "convolution"}[equal]
    return Answer(
        "1b",
        "Which layer reduces sensitivity to small translations?",
        working,
        f"{layer} layers",
        "the convolutional layer",
        "convolution is equivariant: its output moves as the image does. Pooling is what makes small shifts vanish",
    )


def _sizes() -> list[Answer]:
    padding = same_padding(5)
    padded = window_output_size(32, kernel=5, stride=1, padding=padding)
    (kernel,) = kernels_between(512, 504)
    pooled = window_output_size(504, kernel=2, stride=2)
    convolved = window_output_size(252, kernel=3, stride=1)
    return [
        Answer(
            "1c",
            "Which padding keeps height and width for a 5x5 kernel at stride 1?",
            (f"(kernel - 1) / 2 = (5 - 1) / 2 = {padding}", f"check: (32 + 2*{padding} - 5) / 1 + 1 = {padded}"),
            f"{padding}",
            "2",
        ),
        Answer(
            "1d",
            "Which kernel reduces 512x512 to 504x504, stride 1, no padding?",
            (f"512 - kernel + 1 = 504, so kernel = 512 - 504 + 1 = {kernel}",),
            f"{kernel}x{kernel}",
            "9x9",
        ),
        Answer(
            "1e",
            "504x504 after 2x2 pooling, stride 2?",
            (f"floor((504 - 2) / 2) + 1 = {pooled}",),
            f"{pooled}x{pooled}",
            "252x252",
        ),
        Answer(
            "1f",
            "252x252 after a 3x3 convolution, no padding?",
            (f"252 - 3 + 1 = {convolved}",),
            f"{convolved}x{convolved}",
            "250x250",
        ),
    ]


def _parameters() -> Answer:
    layers = [layer for layer in describe(get_task("task2").network) if layer.parameters]
    total = total_parameters(layers)
    working = [f"layer {layer.number}, {layer.kind}: {layer.counting} = {layer.parameters:,}" for layer in layers]
    working.append(f"sum: {' + '.join(f'{layer.parameters:,}' for layer in layers)} = {total:,}")
    biases = [int(layer.units) for layer in layers if layer.kind == "Conv2D"]
    return Answer(
        "1g",
        "How many parameters does the network of task 2 have on 32x32x3 images?",
        tuple(working),
        f"{total:,}",
        f"{REPORTED_PARAMETERS:,}",
        f"it leaves out the biases of the convolutions, {' + '.join(map(str, biases))} = {sum(biases)}, "
        "and counts those of the fully connected layers",
    )


def cross_correlate(image: Matrix, kernel: Matrix, *, padding: int = 0) -> list[list[int]]:
    """What a convolutional layer computes at stride 1: sums of products, with the kernel *not* flipped."""
    windows = sliding_window_view(np.pad(image, padding), np.shape(kernel))
    return np.einsum("yxij,ij->yx", windows, kernel).tolist()  # type: ignore[no-any-return]


def max_pool(image: Matrix, kernel: int, stride: int) -> list[list[int]]:
    """The largest number of each window."""
    windows = sliding_window_view(np.array(image), (kernel, kernel))
    return windows[::stride, ::stride].max(axis=(2, 3)).tolist()  # type: ignore[no-any-return]


def _aligned(rows: Matrix) -> list[str]:
    """The rows as text, numbers right-aligned."""
    width = max(len(str(number)) for row in rows for number in row)
    return ["  ".join(f"{number:>{width}}" for number in row) for row in rows]
