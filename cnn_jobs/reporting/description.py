"""A run in words, for its page in MLflow."""

from __future__ import annotations

from collections.abc import Mapping

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.models.spec import ResNet18
from cnn_jobs.recipe import Recipe
from cnn_jobs.reporting.run_files import results_markdown
from cnn_jobs.tasks import Task


def note(task: Task, recipe: Recipe, dataset: Dataset, metrics: Mapping[str, float] | None = None) -> str:
    """Markdown: what is trained on what and, once there are ``metrics``, what came out beside the reference."""
    images = f"{len(dataset.train_images):,} training and {len(dataset.test_images):,} test images"
    drawn = " (synthetic pictures that the package draws itself)" if dataset.synthetic else ""
    lines = [
        f"**{task.name}** - {task.title}",
        "",
        f"Data: `{dataset.name}`{drawn}, {images}, digest `{dataset.digest[:12]}`.",
        f"Recipe: {recipe.optimizer} at learning rate {recipe.lr:g}, batch size {recipe.batch_size}, "
        f"at most {recipe.epochs} epochs, {recipe.precision}, seed {recipe.seed}.",
    ]
    if isinstance(task.network, ResNet18):
        lines.append(f"Begins with weights `{recipe.weights}`; frozen but for layer4 and the last layer.")
    if metrics:
        lines += ["", results_markdown(metrics)]
        # The reference is of CIFAR-10: beside drawn pictures it would only mislead.
        if not dataset.synthetic and (reference := reference_line(task)):
            lines.append(reference)
    return "\n".join(lines)


def reference_line(task: Task) -> str:
    """The course report's figures for the last model, in one line; empty where it gives none."""
    reference = task.reference
    named = {
        "training accuracy": reference.train_accuracy,
        "validation accuracy": reference.val_accuracy,
        "test accuracy": reference.test_accuracy,
        "training loss": reference.train_loss,
    }
    given = [f"{name} {value:g}" for name, value in named.items() if value is not None]
    return f"Course report: {', '.join(given)}." if given else ""
