"""A network's table: one row a layer, with output shape and parameters, by arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass

from cnn_jobs import arithmetic
from cnn_jobs.models.spec import ConvBlock, ConvNet, Pool

POOL_TITLES = {"max": "MaxPool2D", "average": "AvgPool2D"}


@dataclass(frozen=True)
class Layer:
    """One row: ``number`` counts layers with weights, as the course report does; shapes are without the batch."""

    number: str
    kind: str
    units: str
    details: str
    activation: str
    output: tuple[int, ...]
    parameters: int


COLUMNS = ("Layer", "Layer type", "#Filters / units", "Details", "Activation", "Output", "Parameters")


def describe(network: ConvNet, image: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> list[Layer]:
    """The layers of ``network`` for images of (channels, height, width).

    Raises ``RecipeError`` where the images are too small for a kernel.
    """
    layers: list[Layer] = []
    shape = image
    for number, block in enumerate(network.blocks, start=1):
        rows, shape = _block(str(number), block, shape)
        layers += rows
    features = shape[0] * shape[1] * shape[2]
    layers.append(Layer("", "Flatten", "", "", "", (features,), 0))
    details = f"dropout p={network.dropout:g}" if network.dropout else ""
    number = len(network.blocks) + 1
    for offset, (inputs, units, activation) in enumerate(
        ((features, network.hidden, "ReLU"), (network.hidden, classes, "Softmax (in the loss)"))
    ):
        parameters = arithmetic.linear_parameters(inputs, units)
        layers.append(
            Layer(str(number + offset), "Fully-Connected", str(units), details, activation, (units,), parameters)
        )
    return layers


def _block(number: str, block: ConvBlock, image: tuple[int, int, int]) -> tuple[list[Layer], tuple[int, int, int]]:
    channels, height, width = image

    def shrink(kernel: int, stride: int, padding: int = 0) -> tuple[int, int, int]:
        sides = (
            arithmetic.window_output_size(side, kernel=kernel, stride=stride, padding=padding)
            for side in (height, width)
        )
        return (block.filters, *sides)  # type: ignore[return-value]

    convolved = shrink(block.kernel, block.stride, block.padding)
    details = f"F={block.kernel}, p={block.padding}, s={block.stride}"
    parameters = arithmetic.conv_parameters(channels, block.filters, block.kernel)
    rows = [Layer(number, "Conv2D", str(block.filters), details, "ReLU", convolved, parameters)]
    pool: Pool = block.pool
    _, height, width = convolved
    pooled = shrink(pool.kernel, pool.stride)
    rows.append(Layer(number, POOL_TITLES[pool.kind], "", f"F={pool.kernel}, s={pool.stride}", "", pooled, 0))
    if block.batch_norm:
        parameters = arithmetic.batch_norm_parameters(block.filters)
        rows.append(Layer("", "Batch normalization", "", "", "", pooled, parameters))
    return rows, pooled


def cells(layer: Layer) -> tuple[str, ...]:
    """The row as text, in the order of ``COLUMNS``."""
    output = "x".join(map(str, layer.output))
    parameters = f"{layer.parameters:,}" if layer.parameters else "-"
    return (
        layer.number,
        layer.kind,
        layer.units or "-",
        layer.details or "-",
        layer.activation or "-",
        output,
        parameters,
    )


def total_parameters(layers: list[Layer]) -> int:
    """Learned weights of the whole network."""
    return sum(layer.parameters for layer in layers)


def as_markdown(layers: list[Layer]) -> str:
    """The table in Markdown, with the total below it."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells(layer)) + " |" for layer in layers]
    return "\n".join([*lines, "", f"{total_parameters(layers):,} parameters", ""])
