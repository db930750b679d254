"""The rows of a network's table, one layer after another."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from cnn_jobs import arithmetic
from cnn_jobs.errors import RecipeError
from cnn_jobs.models.spec import Pool

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
