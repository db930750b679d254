"""The single list of tasks: network, recipe and the reference numbers of the course report.

A new task is one entry here; the command line, the tables and the tests follow from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cnn_jobs.errors import RecipeError, UserError
from cnn_jobs.networks.spec import ConvBlock, ConvNet, InputTransform, Network, Pool, ResNet18
from cnn_jobs.recipe import NO_WEIGHTS, Recipe, digest_of


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Figures of the course report, ``None`` where it gives none; accuracies in [0, 1]."""

    train_loss: float | None = None
    train_accuracy: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to train. ``network`` is the table that ``models`` builds; ``recipe`` holds the task's defaults."""

    name: str
    title: str
    network: Network
    recipe: Recipe
    transform: InputTransform = field(default_factory=InputTransform)
    reference: Reference = field(default_factory=Reference)

    def check(self, recipe: Recipe) -> None:
        """Raises ``RecipeError`` (exit 2) for pretrained weights of a network that has none."""
        if recipe.weights != NO_WEIGHTS and not isinstance(self.network, ResNet18):
            raise RecipeError(
                f"weights is '{recipe.weights}', but {self.name} starts from random ones: "
                "leave --weights out, or use task4a"
            )

    def recipe_hash(self, recipe: Recipe, weights_digest: str = "") -> str:
        """SHA-256 over network, transform, recipe and weights: equal hashes mean the same training, given the data."""
        return digest_of(self._content(recipe, weights_digest))

    def group_hash(self, recipe: Recipe, data_digest: str, weights_digest: str = "") -> str:
        """SHA-256 that runs share if they differ only in the seed: comparisons average over these runs."""
        content = self._content(recipe, weights_digest)
        del content["recipe"]["seed"]
        return digest_of({**content, "data_digest": data_digest})

    def _content(self, recipe: Recipe, weights_digest: str) -> dict[str, Any]:
        values = recipe.hashed()
        # The digest of the weights is hashed, not their source.
        source = values.pop("weights")
        if (source == NO_WEIGHTS) != (not weights_digest):
            raise ValueError(f"weights are '{source}', their digest is '{weights_digest}'")
        content = {"network": self.network.as_dict(), "transform": self.transform.as_dict(), "recipe": values}
        return {**content, "weights": weights_digest} if weights_digest else content


def _blocks(
    filters: tuple[int, int, int],
    *,
    kernel: int = 5,
    padding: int = 2,
    pools: tuple[Pool, Pool, Pool] = (Pool(), Pool(), Pool()),
    batch_norm: bool = True,
) -> tuple[ConvBlock, ...]:
    return tuple(
        ConvBlock(filters=n, kernel=kernel, padding=padding, pool=pool, batch_norm=batch_norm)
        for n, pool in zip(filters, pools, strict=True)
    )


_SMALL = (32, 64, 128)
_OVERLAPPING = (Pool(kernel=4), Pool(kernel=3), Pool())
_AVERAGE = (Pool(kind="average"), Pool(kind="average"), Pool(kind="average"))

# The report's task 3 tables are of the last model after 10 epochs: no early stopping.
_TASK3_RECIPE = Recipe(optimizer="adam", lr=7e-4, weight_decay=2e-5, early_stop_count=0)

_TASKS = (
    Task(
        name="task2",
        title="Baseline: three 5x5 convolutions, SGD",
        network=ConvNet(blocks=_blocks(_SMALL, batch_norm=False)),
        recipe=Recipe(),
        reference=Reference(
            val_loss=1.79,
            val_accuracy=0.737,
            note="The report's loss has an additional softmax before the cross-entropy (its minimum is therefore "
            "1.46): losses are not comparable, accuracies are.",
        ),
    ),
    Task(
        name="task3-arch1",
        title="First architecture: BatchNorm, overlapping max pooling, Adam",
        network=ConvNet(blocks=_blocks(_SMALL, pools=_OVERLAPPING)),
        recipe=_TASK3_RECIPE,
        reference=Reference(train_loss=0.1665, train_accuracy=0.9441, val_accuracy=0.7962, test_accuracy=0.7799),
    ),
    Task(
        name="task3-arch2",
        title="Second architecture: BatchNorm and dropout 0.4, Adam",
        network=ConvNet(blocks=_blocks(_SMALL), dropout=0.4),
        recipe=_TASK3_RECIPE,
        reference=Reference(train_loss=0.2950, train_accuracy=0.9062, val_accuracy=0.7892, test_accuracy=0.7789),
    ),
    Task(
        name="task3c-avgpool",
        title="What helped: average instead of max pooling, with BatchNorm",
        network=ConvNet(blocks=_blocks(_SMALL, pools=_AVERAGE)),
        recipe=_TASK3_RECIPE,
    ),
    Task(
        name="task3d-batchnorm",
        title="The baseline network with BatchNorm, Adam",
        network=ConvNet(blocks=_blocks(_SMALL)),
        recipe=_TASK3_RECIPE,
    ),
    Task(
        name="task3d-plain",
        title="The baseline network without BatchNorm, Adam",
        network=ConvNet(blocks=_blocks(_SMALL, batch_norm=False)),
        recipe=_TASK3_RECIPE,
    ),
    Task(
        name="task3e",
        title="Final architecture: 3x3 kernels, twice the filters, BatchNorm, dropout",
        network=ConvNet(blocks=_blocks((64, 128, 256), kernel=3, padding=1, pools=_OVERLAPPING), dropout=0.4),
        recipe=_TASK3_RECIPE,
        reference=Reference(train_accuracy=0.91, val_accuracy=0.82, test_accuracy=0.814),
    ),
    Task(
        name="task4a",
        title="Transfer: ResNet18 trained on ImageNet, its last stage and a new head trained on",
        network=ResNet18(),
        recipe=Recipe(optimizer="adam", lr=5e-4, batch_size=32, epochs=5, weights="imagenet"),
        transform=InputTransform(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        reference=Reference(train_accuracy=0.99, val_accuracy=0.90, test_accuracy=0.90),
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _TASKS}


@dataclass(frozen=True, kw_only=True)
class Interpretation:
    """What to show of a network; nothing is trained. ``channels``: of torchvision's ResNet18, as in the report."""

    name: str
    title: str
    channels: tuple[int, ...]


INTERPRETATIONS = {
    each.name: each
    for each in (
        Interpretation(
            name="task4b",
            title="Filters of the first convolution of ResNet18, and their activations",
            channels=(14, 26, 32, 49, 52),
        ),
        Interpretation(
            name="task4c",
            title="Activations of the last convolutional layer of ResNet18, and where it looks",
            channels=tuple(range(10)),
        ),
    )
}


def get_interpretation(name: str) -> Interpretation:
    """The interpretation of that name; raises ``UserError`` that lists the valid ones."""
    try:
        return INTERPRETATIONS[name]
    except KeyError:
        raise UserError(f"'{name}' is not an interpretation; choose {' or '.join(INTERPRETATIONS)}") from None


def get_task(name: str) -> Task:
    """The task of that name; raises ``UserError`` that lists the valid ones."""
    try:
        return TASKS[name]
    except KeyError:
        raise UserError(f"unknown task '{name}'; the tasks are {', '.join(TASKS)}") from None
