"""The table of a network, computed without torch: one row per layer, with its output shape, parameters and costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from cnn_jobs.errors import RecipeError
from cnn_jobs.networks.spec import ConvNet, Network, Pool, ResNet18

Shape = tuple[int, ...]
POOL_KINDS = {"max": "MaxPool2D", "average": "AvgPool2D"}
# (stride of the first block, filters) of torchvision's four stages, two blocks each.
RESNET18_STAGES = ((1, 64), (2, 128), (2, 256), (2, 512))
BLOCKS_PER_STAGE, TRAINED_STAGE = 2, 4


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One row of the table. Shapes are without the batch.

    ``number``: counts the layers with weights, as the course report does; ``counting``: the formula of ``parameters``;
    ``macs``: multiply-accumulates for one image; ``receptive_field``: side in pixels of the first layer's input, 0 for
    the whole image; ``trained``: training changes it.
    """

    kind: str
    output: Shape
    number: str = ""
    units: str = ""
    details: str = ""
    activation: str = ""
    parameters: int = 0
    counting: str = ""
    macs: int = 0
    receptive_field: int = 0
    trained: bool = True

    @property
    def output_bytes(self) -> int:
        """Memory of the output for one image, as float32."""
        return 4 * prod(self.output)


def describe(network: Network, image: Shape = (3, 32, 32), classes: int = 10) -> list[Layer]:
    """The layers of ``network`` for images of (channels, height, width).

    Raises ``RecipeError`` for images that are smaller than a kernel or have a wrong number of channels.
    """
    return _resnet18(network, image, classes) if isinstance(network, ResNet18) else _convnet(network, image, classes)


def _convnet(network: ConvNet, image: Shape, classes: int) -> list[Layer]:
    table = _TableBuilder(image)
    for block in network.blocks:
        table.conv(block.filters, block.kernel, stride=block.stride, padding=block.padding, activation="ReLU")
        table.pool(block.pool)
        if block.batch_norm:
            table.batch_norm()
    table.flatten()
    details = f"dropout p={network.dropout:g}" if network.dropout else ""
    table.linear(network.hidden, "ReLU", details)
    table.linear(classes, "Softmax (in the loss)", details)
    return table.layers


def _resnet18(network: ResNet18, image: Shape, classes: int) -> list[Layer]:
    """torchvision's ResNet18, of which only the last stage and the new head are trained."""
    table = _TableBuilder(image)
    table.trained = False
    table.resize(network.side)
    table.conv(64, 7, stride=2, padding=3, bias=False)
    table.batch_norm("ReLU")
    table.pool(Pool(kernel=3), padding=1)
    for stage, (first_stride, filters) in enumerate(RESNET18_STAGES, start=1):
        table.trained = stage == TRAINED_STAGE
        for block in range(BLOCKS_PER_STAGE):
            _residual_block(table, filters, first_stride if block == 0 else 1)
    table.global_average()
    table.flatten()
    table.linear(classes, "Softmax (in the loss)")
    return table.layers


def _residual_block(table: _TableBuilder, filters: int, stride: int) -> None:
    shape, windows = table.shape, table.windows
    table.conv(filters, 3, stride=stride, padding=1, bias=False)
    table.batch_norm("ReLU")
    table.conv(filters, 3, stride=1, padding=1, bias=False)
    if stride == 1 and shape[0] == filters:
        table.batch_norm("+ input, ReLU")
        return
    table.batch_norm("+ shortcut, ReLU")
    # The shortcut starts at the input of the block; after the sum the receptive field is that of the longer path.
    longer, table.shape, table.windows = table.windows, shape, windows
    table.conv(filters, 1, stride=stride, padding=0, bias=False, kind="Conv2D (shortcut)")
    table.batch_norm()
    table.windows = longer


class _TableBuilder:
    """Adds one layer per call; ``shape`` is the input of the next one.

    Each call raises ``RecipeError`` for a layer that is impossible with this input.
    """

    def __init__(self, image: Shape) -> None:
        self.layers: list[Layer] = []
        self.shape = image
        self.trained = True
        self.windows: tuple[tuple[int, int], ...] = ()  # (kernel, stride) of the layers so far
        self._numbered = 0
        self._sees_all = False

    def resize(self, side: int) -> None:
        if self.shape[0] != 3:
            raise RecipeError(f"images have {self.shape[0]} channels, the network takes 3")
        if self.shape[1:] != (side, side):
            self.shape = (3, side, side)
            self._add("Resize", details="bilinear")

    def conv(
        self,
        filters: int,
        kernel: int,
        *,
        stride: int,
        padding: int,
        bias: bool = True,
        activation: str = "",
        kind: str = "Conv2D",
    ) -> None:
        channels = self.shape[0]
        self._slide(filters, kernel, stride, padding)
        self._numbered += kind == "Conv2D"
        self._add(
            kind,
            number=str(self._numbered) if kind == "Conv2D" else "",
            units=str(filters),
            details=f"F={kernel}, p={padding}, s={stride}",
            activation=activation,
            parameters=filters * (channels * kernel**2 + bias),
            counting=f"{filters} * ({channels} * {kernel} * {kernel}{' + 1' if bias else ''})",
            macs=channels * kernel**2 * prod(self.shape),
        )

    def pool(self, pool: Pool, *, padding: int = 0) -> None:
        self._slide(self.shape[0], pool.kernel, pool.stride, padding)
        details = f"F={pool.kernel}{f', p={padding}' if padding else ''}, s={pool.stride}"
        self._add(POOL_KINDS[pool.kind], number=str(self._numbered), details=details)

    def batch_norm(self, activation: str = "") -> None:
        channels = self.shape[0]
        self._add("Batch normalization", activation=activation, parameters=2 * channels, counting=f"2 * {channels}")

    def global_average(self) -> None:
        channels, height, _ = self.shape
        self.shape, self._sees_all = (channels, 1, 1), True
        self._add(POOL_KINDS["average"], details=f"F={height}, global")

    def flatten(self) -> None:
        self.shape, self._sees_all = (prod(self.shape),), True
        self._add("Flatten")

    def linear(self, units: int, activation: str, details: str = "") -> None:
        (features,) = self.shape
        self.shape = (units,)
        self._numbered += 1
        self._add(
            "Fully-Connected",
            number=str(self._numbered),
            units=str(units),
            details=details,
            activation=activation,
            parameters=units * (features + 1),
            counting=f"{units} * ({features} + 1)",
            macs=units * features,
        )

    def _slide(self, filters: int, kernel: int, stride: int, padding: int) -> None:
        sides = self.shape[1:]
        output = [window_output_size(n, kernel=kernel, stride=stride, padding=padding) for n in sides]
        self.shape = (filters, *output)
        self.windows += ((kernel, stride),)

    def _add(self, kind: str, **fields: Any) -> None:
        if min(self.shape) < 1:
            raise RecipeError(f"{kind} has an output of {_sides(self.shape)}: every side must be at least 1")
        field = 0 if self._sees_all else receptive_field(self.windows)
        self.layers.append(Layer(kind=kind, output=self.shape, receptive_field=field, trained=self.trained, **fields))


# -- sizes -----------------------------------------------------------------------------------------------------------
# The formulas are those in torch's documentation of Conv2d and MaxPool2d, at dilation 1 and rounded down.


def window_output_size(size: int, *, kernel: int, stride: int, padding: int = 0) -> int:
    """Output size of a convolution or pooling along one side: floor((size + 2 padding - kernel) / stride) + 1.

    Raises ``RecipeError`` if no window fits.
    """
    _check(size=size, kernel=kernel, stride=stride, padding=padding)
    if kernel > size + 2 * padding:
        raise RecipeError(
            f"kernel {kernel} is larger than its input of {size} pixels with padding {padding}; "
            "use larger images or a smaller kernel"
        )
    return (size + 2 * padding - kernel) // stride + 1


def same_padding(kernel: int) -> int:
    """Padding that keeps the size at stride 1: (kernel - 1) / 2. Raises ``RecipeError`` for an even kernel."""
    _check(kernel=kernel)
    if kernel % 2 == 0:
        raise RecipeError(f"kernel {kernel} is even: no equal padding on both sides keeps the size; use an odd kernel")
    return (kernel - 1) // 2


def kernels_between(size: int, output: int, *, stride: int = 1, padding: int = 0) -> range:
    """The kernels that reduce ``size`` pixels to ``output``: one at stride 1, otherwise up to ``stride``.

    They are solutions of output <= (size + 2 padding - kernel) / stride + 1 < output + 1. Raises ``RecipeError`` if
    there are none.
    """
    _check(size=size, output=output, stride=stride, padding=padding)
    largest = size + 2 * padding - (output - 1) * stride
    kernels = range(max(1, largest - stride + 1), largest + 1)
    if not kernels:
        raise RecipeError(
            f"no kernel reduces {size} pixels to {output} at stride {stride} with padding {padding}: "
            f"the smallest, 1, gives {window_output_size(size, kernel=1, stride=stride, padding=padding)}"
        )
    return kernels


def receptive_field(windows: Sequence[tuple[int, int]]) -> int:
    """Side, in pixels of the image, of the square on which one output depends; it may extend into the padding.

    ``windows``: (kernel, stride) of the layers, in order. Each adds (kernel - 1) times the product of the strides
    before it (Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019).
    """
    field, jump = 1, 1
    for kernel, stride in windows:
        _check(kernel=kernel, stride=stride)
        field += (kernel - 1) * jump
        jump *= stride
    return field


def _check(**numbers: int) -> None:
    for name, number in numbers.items():
        least = 0 if name == "padding" else 1
        if number < least:
            raise RecipeError(f"{name} {number}: must be at least {least}")


# -- as text -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of the table; ``text`` gives the cell of a layer, ``right`` aligns numbers."""

    title: str
    text: Callable[[Layer], str]
    right: bool = False


COLUMNS = (
    Column("Layer", lambda layer: layer.number),
    Column("Layer type", lambda layer: layer.kind),
    Column("Filters", lambda layer: layer.units or "-"),
    Column("Details", lambda layer: layer.details or "-"),
    Column("Activation", lambda layer: layer.activation or "-"),
    Column("Output", lambda layer: _sides(layer.output)),
    Column("Parameters", lambda layer: f"{layer.parameters:,}" if layer.parameters else "-", right=True),
    Column("Rec. field", lambda layer: f"{layer.receptive_field} px" if layer.receptive_field else "all", right=True),
    Column("MACs", lambda layer: _macs(layer.macs), right=True),
    Column("Memory", lambda layer: _kib(layer.output_bytes / 1024), right=True),
)
LEGEND = (
    "Rec. field: receptive field, the side of the square of input pixels behind one output. MACs: multiply-accumulates "
    "for one image. Memory: the layer's output for one image in 32-bit numbers."
)


def cells(layer: Layer) -> tuple[str, ...]:
    """The row as text, in the order of ``COLUMNS``."""
    return tuple(column.text(layer) for column in COLUMNS)


def as_markdown(layers: Sequence[Layer]) -> str:
    """The table in Markdown, with the totals below it."""
    lines = ["| " + " | ".join(column.title for column in COLUMNS) + " |"]
    lines.append("|" + "|".join("---:" if column.right else "---" for column in COLUMNS) + "|")
    lines += ["| " + " | ".join(cells(layer)) + " |" for layer in layers]
    return "\n".join([*lines, "", f"{summary(layers)}.", "", LEGEND, ""])


def total_parameters(layers: Sequence[Layer], *, trained: bool = False) -> int:
    """Number of learned weights; ``trained``: only those that training changes."""
    return sum(layer.parameters for layer in layers if layer.trained or not trained)


def summary(layers: Sequence[Layer]) -> str:
    """The totals in one line."""
    total, trained = total_parameters(layers), total_parameters(layers, trained=True)
    frozen = "" if trained == total else f" ({trained:,} trained, {total - trained:,} frozen)"
    macs = sum(layer.macs for layer in layers)
    memory = sum(layer.output_bytes for layer in layers)
    return f"{total:,} parameters{frozen}; for one image {_macs(macs)} MACs and {memory / 1024:,.0f} KiB of outputs"


def _sides(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _macs(count: int) -> str:
    if count >= 100_000:
        return f"{count / 1e6:,.2f} M"
    return f"{count:,}" if count else "-"


def _kib(size: float) -> str:
    return f"{size:,.0f} KiB" if size >= 100 else f"{size:.1f} KiB"
