"""A network's table: one row a layer, with output shape, parameters and costs, by arithmetic alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from cnn_jobs.errors import RecipeError
from cnn_jobs.networks import arithmetic
from cnn_jobs.networks.spec import ConvBlock, ConvNet, Network, Pool, ResNet18

POOL_TITLES = {"max": "MaxPool2D", "average": "AvgPool2D"}
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Layer:
    """One row: ``number`` counts layers with weights, as the course report does; shapes are without the batch.

    ``counting``: how its parameters are counted; ``macs``: multiply-accumulates for one image; ``receptive_field``:
    side in pixels of the images as they reach the first layer, 0 for all of them; ``trained``: a training changes it.
    """

    number: str
    kind: str
    units: str
    details: str
    activation: str
    output: tuple[int, ...]
    parameters: int
    counting: str = ""
    macs: int = 0
    receptive_field: int = 0
    trained: bool = True


@dataclass(frozen=True)
class Place:
    """A point between two layers: the shape there, and the (kernel, stride) of all windows before it."""

    shape: Shape
    windows: tuple[tuple[int, int], ...]


class LayerTable:
    """Grows by a layer a call; ``shape`` (channels, height, width) is what the next one gets.

    Every call raises ``RecipeError`` for a layer that cannot stand there.
    """

    def __init__(self, image: Shape, *, trained: bool = True) -> None:
        self.layers: list[Layer] = []
        self.shape = image
        self.trained = trained
        self._windows: list[tuple[int, int]] = []

    def resize(self, side: int) -> None:
        """Images of another size, resized before the first layer."""
        if self.shape[0] != 3:
            raise RecipeError(f"images have {self.shape[0]} channels, the network takes 3")
        if self.shape[1:] != (side, side):
            self.shape = (3, side, side)
            self._add("", "Resize", "", "bilinear", "", 0, "")

    def conv(
        self,
        number: str,
        filters: int,
        kernel: int,
        *,
        stride: int,
        padding: int,
        bias: bool = True,
        activation: str = "",
        kind: str = "Conv2D",
    ) -> None:
        """A square convolution."""
        channels = self.shape[0]
        self._slide(filters, kernel, stride, padding)
        details = f"F={kernel}, p={padding}, s={stride}"
        parameters = arithmetic.conv_parameters(channels, filters, kernel, bias=bias)
        counting = f"{filters} * ({channels} * {kernel} * {kernel}{' + 1' if bias else ''})"
        macs = arithmetic.conv_macs(channels, kernel, self.shape)
        self._add(number, kind, str(filters), details, activation, parameters, counting, macs)

    def pool(self, number: str, pool: Pool, *, padding: int = 0) -> None:
        """Square pooling."""
        self._slide(self.shape[0], pool.kernel, pool.stride, padding)
        details = f"F={pool.kernel}{f', p={padding}' if padding else ''}, s={pool.stride}"
        self._add(number, POOL_TITLES[pool.kind], "", details, "", 0, "")

    def batch_norm(self, activation: str = "") -> None:
        """BatchNorm over the channels."""
        channels = self.shape[0]
        parameters = arithmetic.batch_norm_parameters(channels)
        self._add("", "Batch normalization", "", "", activation, parameters, f"2 * {channels}")

    def place(self) -> Place:
        """Where the table stands, for a ``shortcut`` that begins here."""
        return Place(self.shape, tuple(self._windows))

    def shortcut(self, begin: Place, filters: int, stride: int) -> None:
        """A 1x1 convolution and BatchNorm from ``begin`` to the sum behind the layer that was added last."""
        longer = self._windows  # what the sum sees
        self.shape, self._windows = begin.shape, list(begin.windows)
        self.conv("", filters, 1, stride=stride, padding=0, bias=False, kind="Conv2D (shortcut)")
        self.batch_norm()
        self._windows = longer

    def global_average(self) -> None:
        """The mean over all places of a channel."""
        channels, height, _ = self.shape
        self.shape = (channels, 1, 1)
        self._add("", POOL_TITLES["average"], "", f"F={height}, global", "", 0, "", whole=True)

    def flatten(self) -> None:
        """All numbers in one row."""
        self.layers.append(Layer("", "Flatten", "", "", "", (prod(self.shape),), 0, trained=self.trained))

    def linear(self, number: str, units: int, details: str, activation: str) -> None:
        """A fully connected layer on what ``flatten`` or ``linear`` gave."""
        (features,) = self.layers[-1].output
        parameters = arithmetic.linear_parameters(features, units)
        self.layers.append(
            Layer(
                number,
                "Fully-Connected",
                str(units),
                details,
                activation,
                (units,),
                parameters,
                counting=f"{units} * ({features} + 1)",
                macs=arithmetic.linear_macs(features, units),
                trained=self.trained,
            )
        )

    def _slide(self, filters: int, kernel: int, stride: int, padding: int) -> None:
        height, width = (
            arithmetic.window_output_size(side, kernel=kernel, stride=stride, padding=padding)
            for side in self.shape[1:]
        )
        self.shape = (filters, height, width)
        self._windows.append((kernel, stride))

    def _add(
        self,
        number: str,
        kind: str,
        units: str,
        details: str,
        activation: str,
        parameters: int,
        counting: str,
        macs: int = 0,
        *,
        whole: bool = False,
    ) -> None:
        field = 0 if whole else arithmetic.receptive_field(self._windows)
        self.layers.append(
            Layer(number, kind, units, details, activation, self.shape, parameters, counting, macs, field, self.trained)
        )


# (stride of the first block, filters) of torchvision's four stages, two blocks each.
RESNET18_STAGES = ((1, 64), (2, 128), (2, 256), (2, 512))
BLOCKS_PER_STAGE, TRAINED_STAGE = 2, 4


@dataclass(frozen=True)
class Column:
    """A column of the table; numbers are aligned to the right."""

    title: str
    right: bool = False


COLUMNS = (
    Column("Layer"),
    Column("Layer type"),
    Column("Filters"),
    Column("Details"),
    Column("Activation"),
    Column("Output"),
    Column("Parameters", right=True),
    Column("Rec. field", right=True),
    Column("MACs", right=True),
    Column("Memory", right=True),
)


def describe(network: Network, image: Shape = (3, 32, 32), classes: int = 10) -> list[Layer]:
    """The layers of ``network`` for images of (channels, height, width).

    Raises ``RecipeError`` where the images are too small for a kernel, or have not the channels that it needs.
    """
    return _resnet18(network, image, classes) if isinstance(network, ResNet18) else _convnet(network, image, classes)


def _convnet(network: ConvNet, image: Shape, classes: int) -> list[Layer]:
    table = LayerTable(image)
    for number, block in enumerate(network.blocks, start=1):
        _block(table, str(number), block)
    table.flatten()
    details = f"dropout p={network.dropout:g}" if network.dropout else ""
    number = len(network.blocks) + 1
    table.linear(str(number), network.hidden, details, "ReLU")
    table.linear(str(number + 1), classes, details, "Softmax (in the loss)")
    return table.layers


def _block(table: LayerTable, number: str, block: ConvBlock) -> None:
    table.conv(number, block.filters, block.kernel, stride=block.stride, padding=block.padding, activation="ReLU")
    table.pool(number, block.pool)
    if block.batch_norm:
        table.batch_norm()


def _resnet18(network: ResNet18, image: Shape, classes: int) -> list[Layer]:
    """As torchvision builds it; its shortcuts with weights have no number of their own."""
    table = LayerTable(image, trained=False)
    table.resize(network.side)
    table.conv("1", 64, 7, stride=2, padding=3, bias=False)
    table.batch_norm("ReLU")
    table.pool("1", Pool(kernel=3), padding=1)
    number = 2
    for stage, (first_stride, filters) in enumerate(RESNET18_STAGES, start=1):
        table.trained = stage == TRAINED_STAGE
        for block in range(BLOCKS_PER_STAGE):
            _residual_block(table, number, filters, first_stride if block == 0 else 1)
            number += 2
    table.global_average()
    table.flatten()
    table.trained = True
    table.linear(str(number), classes, "", "Softmax (in the loss)")
    return table.layers


def _residual_block(table: LayerTable, number: int, filters: int, stride: int) -> None:
    begin = table.place()
    table.conv(str(number), filters, 3, stride=stride, padding=1, bias=False)
    table.batch_norm("ReLU")
    table.conv(str(number + 1), filters, 3, stride=1, padding=1, bias=False)
    if stride == 1 and begin.shape[0] == filters:
        table.batch_norm("+ input, ReLU")
    else:
        table.batch_norm("+ shortcut, ReLU")
        table.shortcut(begin, filters, stride)


def cells(layer: Layer) -> tuple[str, ...]:
    """The row as text, in the order of ``COLUMNS``."""
    return (
        layer.number,
        layer.kind,
        layer.units or "-",
        layer.details or "-",
        layer.activation or "-",
        "x".join(map(str, layer.output)),
        f"{layer.parameters:,}" if layer.parameters else "-",
        f"{layer.receptive_field} px" if layer.receptive_field else "all",
        _macs(layer.macs),
        f"{kib:,.0f} KiB" if (kib := arithmetic.activation_bytes(layer.output) / 1024) >= 100 else f"{kib:.1f} KiB",
    )


def _macs(count: int) -> str:
    if count >= 100_000:
        return f"{count / 1e6:,.2f} M"
    return f"{count:,}" if count else "-"


def total_parameters(layers: Sequence[Layer], *, trained: bool = False) -> int:
    """Learned weights of the whole network, or only those that a training changes."""
    return sum(layer.parameters for layer in layers if layer.trained or not trained)


def summary(layers: Sequence[Layer]) -> str:
    """The totals in one line."""
    total, trained = total_parameters(layers), total_parameters(layers, trained=True)
    frozen = "" if trained == total else f" ({trained:,} trained, {total - trained:,} frozen)"
    macs = sum(layer.macs for layer in layers)
    memory = sum(arithmetic.activation_bytes(layer.output) for layer in layers)
    return f"{total:,} parameters{frozen}; for one image {_macs(macs)} MACs and {memory / 1024:,.0f} KiB of outputs"


LEGEND = (
    "Rec. field: receptive field, the side of the square of input pixels behind one output. MACs: multiply-accumulates "
    "for one image. Memory: the layer's output for one image in 32-bit numbers."
)


def as_markdown(layers: Sequence[Layer]) -> str:
    """The table in Markdown, with the totals below it."""
    lines = ["| " + " | ".join(column.title for column in COLUMNS) + " |"]
    lines.append("|" + "|".join("---:" if column.right else "---" for column in COLUMNS) + "|")
    lines += ["| " + " | ".join(cells(layer)) + " |" for layer in layers]
    return "\n".join([*lines, "", f"{summary(layers)}.", "", LEGEND, ""])
