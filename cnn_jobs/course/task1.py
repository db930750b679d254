"""Task 1 of the course, arithmetic of convolutional networks: each answer computed, and compared with the report's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cnn_jobs.networks.arithmetic import kernels_between, same_padding, window_output_size
from cnn_jobs.networks.table import describe, total_parameters
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
    return [_convolution(), _translation(), _padding(), _kernel(), _pooling(), _second_convolution(), _parameters()]


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
    padded = pad(IMAGE, 1)
    window = [row[:3] for row in padded[:3]]
    products = [
        f"{weight}*{pixel}"
        for weights, pixels in zip(SOBEL, window, strict=True)
        for weight, pixel in zip(weights, pixels, strict=True)
    ]
    working = (
        "the image, padded with zeros to 5x7:",
        *(f"    {line}" for line in _aligned(padded)),
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


def _padding() -> Answer:
    padding = same_padding(5)
    size = window_output_size(32, kernel=5, stride=1, padding=padding)
    working = (f"(kernel - 1) / 2 = (5 - 1) / 2 = {padding}", f"check: (32 + 2*{padding} - 5) / 1 + 1 = {size}")
    question = "Which padding keeps height and width for a 5x5 kernel at stride 1?"
    return Answer("1c", question, working, f"{padding}", "2")


def _kernel() -> Answer:
    (kernel,) = kernels_between(512, 504)
    working = (f"512 - kernel + 1 = 504, so kernel = 512 - 504 + 1 = {kernel}",)
    question = "Which kernel reduces 512x512 to 504x504, stride 1, no padding?"
    return Answer("1d", question, working, f"{kernel}x{kernel}", "9x9")


def _pooling() -> Answer:
    size = window_output_size(504, kernel=2, stride=2)
    working = (f"floor((504 - 2) / 2) + 1 = {size}",)
    return Answer("1e", "504x504 after 2x2 pooling, stride 2?", working, f"{size}x{size}", "252x252")


def _second_convolution() -> Answer:
    size = window_output_size(252, kernel=3, stride=1)
    working = (f"252 - 3 + 1 = {size}",)
    return Answer("1f", "252x252 after a 3x3 convolution, no padding?", working, f"{size}x{size}", "250x250")


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


# -- layers computed by hand -------------------------------------------------------------------------------------------


def pad(image: Matrix, padding: int) -> list[list[int]]:
    """``image`` (rows of equal length) surrounded by ``padding`` rows and columns of zeros."""
    width = len(image[0]) + 2 * padding
    blank = [[0] * width for _ in range(padding)]
    return [*blank, *([0] * padding + list(row) + [0] * padding for row in image), *map(list, blank)]


def cross_correlate(image: Matrix, kernel: Matrix, *, padding: int = 0) -> list[list[int]]:
    """What a convolutional layer computes at stride 1: sums of products, with the kernel *not* flipped."""
    height = window_output_size(len(image), kernel=len(kernel), stride=1, padding=padding)
    width = window_output_size(len(image[0]), kernel=len(kernel[0]), stride=1, padding=padding)
    padded = pad(image, padding)
    return [
        [
            sum(weight * padded[y + dy][x + dx] for dy, row in enumerate(kernel) for dx, weight in enumerate(row))
            for x in range(width)
        ]
        for y in range(height)
    ]


def max_pool(image: Matrix, kernel: int, stride: int) -> list[list[int]]:
    """The largest number of each window."""
    height, width = (window_output_size(side, kernel=kernel, stride=stride) for side in (len(image), len(image[0])))
    return [
        [
            max(image[y * stride + dy][x * stride + dx] for dy in range(kernel) for dx in range(kernel))
            for x in range(width)
        ]
        for y in range(height)
    ]


def _aligned(rows: Matrix) -> list[str]:
    """The rows as text, numbers right-aligned."""
    width = max(len(str(number)) for row in rows for number in row)
    return ["  ".join(f"{number:>{width}}" for number in row) for row in rows]
