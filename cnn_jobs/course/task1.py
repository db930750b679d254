"""Task 1 of the course: arithmetic of convolutional networks, each answer computed and compared with the report's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cnn_jobs.networks import arithmetic
from cnn_jobs.networks.table import describe, total_parameters
from cnn_jobs.tasks import get_task

IMAGE = ((1, 0, 2, 3, 1), (3, 2, 0, 7, 0), (0, 6, 1, 1, 4))
# What the course report says, to be compared.
REPORTED_COLUMN, REPORTED_PARAMETERS = [2, 10, 14], 390_186
SOBEL = ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))


@dataclass(frozen=True)
class Answer:
    """One part: its question, the lines of its working, the answer, what the report says.

    ``mistake``: why the report is wrong, "" where it is right.
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
        """Whether the report is right, and why not."""
        return f"wrong: {self.mistake}" if self.mistake else "right"


def answers() -> list[Answer]:
    """All parts, in order."""
    return [_convolution(), _translation(), _padding(), _kernel(), _pooling(), _second_convolution(), _parameters()]


def as_markdown(parts: Sequence[Answer]) -> str:
    """Everything, as a page."""
    lines = ["# Task 1", ""]
    for each in parts:
        lines += [f"## {each.part}", "", each.question, "", "```", *each.working, "```", ""]
        lines += ["Answer:", "", "```", each.answer, "```", "", f"Course report: {each.report} - {each.verdict}.", ""]
    return "\n".join(lines)


def as_text(rows: Sequence[Sequence[int]]) -> list[str]:
    """The rows of a matrix, its numbers right-aligned."""
    width = max(len(str(number)) for row in rows for number in row)
    return ["  ".join(f"{number:>{width}}" for number in row) for row in rows]


def _convolution() -> Answer:
    result = arithmetic.cross_correlate(IMAGE, SOBEL, padding=1)
    column = [row[0] for row in result]
    padded = arithmetic.pad(IMAGE, 1)
    window = [row[:3] for row in padded[:3]]
    products = [
        f"{weight}*{pixel}"
        for weights, pixels in zip(SOBEL, window, strict=True)
        for weight, pixel in zip(weights, pixels, strict=True)
    ]
    working = (
        "the image, padded with zeros to 5x7:",
        *(f"    {line}" for line in as_text(padded)),
        "the kernel lies on each 3x3 window, unflipped, as a convolutional layer has it; top left:",
        f"    {' + '.join(products)} = {result[0][0]}",
        "(flipped, as mathematics defines convolution, this kernel would give each number with the other sign)",
    )
    mistake = "" if column == REPORTED_COLUMN else f"the first column is {', '.join(map(str, column))}"
    return Answer(
        "1a",
        "Convolve the 3x5 image with the Sobel kernel, zero padding 1.",
        working,
        "\n".join(as_text(result)),
        f"first column {', '.join(map(str, REPORTED_COLUMN))}",
        mistake,
    )


def _translation() -> Answer:
    image, moved = ((0, 9, 0, 0, 0, 0, 0, 0),), ((9, 0, 0, 0, 0, 0, 0, 0),)
    edge = ((1, -1),)
    convolved = [arithmetic.cross_correlate(each, edge)[0] for each in (image, moved)]
    # Two rows of the same: a square window needs them.
    pooled = [arithmetic.max_pool((each[0], each[0]), 2, 2)[0] for each in (image, moved)]
    equal = convolved[0] == convolved[1], pooled[0] == pooled[1]
    working = (
        f"a row of pixels, {image[0]}, and the same moved by one, {moved[0]}:",
        f"    convolved with {edge[0]}: {convolved[0]} and {convolved[1]}: {_same(equal[0])}",
        f"    max pooled, 2 with stride 2: {pooled[0]} and {pooled[1]}: {_same(equal[1])}",
        "a convolution moves with its image (it is equivariant); a maximum stays under a shift inside its window",
    )
    layer = {(False, True): "pooling", (True, False): "convolution"}[equal]
    return Answer(
        "1b",
        "Which layer reduces sensitivity to small translations?",
        working,
        f"{layer} layers",
        "the convolutional layer",
        "convolution is equivariant: its output moves as the image does. It is pooling that makes small shifts vanish",
    )


def _padding() -> Answer:
    padding = arithmetic.same_padding(5)
    size = arithmetic.window_output_size(32, kernel=5, stride=1, padding=padding)
    working = (
        f"(kernel - 1) / 2 = (5 - 1) / 2 = {padding}",
        f"check: (32 + 2*{padding} - 5) / 1 + 1 = {size}",
    )
    return Answer(
        "1c", "Which padding keeps height and width for a 5x5 kernel at stride 1?", working, f"{padding}", "2"
    )


def _kernel() -> Answer:
    (kernel,) = arithmetic.kernels_between(512, 504)
    working = (f"512 - kernel + 1 = 504, so kernel = 512 - 504 + 1 = {kernel}",)
    return Answer(
        "1d",
        "Which kernel takes 512x512 to 504x504, stride 1, no padding?",
        working,
        f"{kernel}x{kernel}",
        "9x9",
    )


def _pooling() -> Answer:
    size = arithmetic.window_output_size(504, kernel=2, stride=2)
    working = (f"floor((504 - 2) / 2) + 1 = {size}",)
    return Answer("1e", "504x504 after 2x2 pooling, stride 2?", working, f"{size}x{size}", "252x252")


def _second_convolution() -> Answer:
    size = arithmetic.window_output_size(252, kernel=3, stride=1)
    working = (f"252 - 3 + 1 = {size}",)
    return Answer("1f", "252x252 after a 3x3 convolution, no padding?", working, f"{size}x{size}", "250x250")


def _parameters() -> Answer:
    layers = [layer for layer in describe(get_task("task2").network) if layer.parameters]
    total, said = total_parameters(layers), REPORTED_PARAMETERS
    working = tuple(f"layer {layer.number}, {layer.kind}: {layer.counting} = {layer.parameters:,}" for layer in layers)
    biases = [int(layer.units) for layer in layers if layer.kind == "Conv2D"]
    return Answer(
        "1g",
        "How many parameters has the network of task 2 on 32x32x3 images?",
        (*working, f"sum: {' + '.join(f'{layer.parameters:,}' for layer in layers)} = {total:,}"),
        f"{total:,}",
        f"{said:,}",
        f"it leaves out the biases of the convolutions, {' + '.join(map(str, biases))} = {sum(biases)}, "
        "and counts those of the fully connected layers",
    )


def _same(equal: bool) -> str:
    return "the same" if equal else "another result"
