"""What a trained network produces: final figures, tables, pictures, the MLflow model."""

from __future__ import annotations

import copy
import csv
import io
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from cnn_jobs.data.batches import TrainingData
from cnn_jobs.errors import DivergedError
from cnn_jobs.models.build import whole_network
from cnn_jobs.recipe import Recipe
from cnn_jobs.system.files import write_text
from cnn_jobs.system.plotting import BLACK, BLUE, SKY_BLUE, VERMILION, save_figure
from cnn_jobs.tasks import Task
from cnn_jobs.tracking import names
from cnn_jobs.tracking.model_export import save_mlflow_model
from cnn_jobs.training.evaluation import Evaluation, evaluate
from cnn_jobs.training.loop import DeviceTime
from cnn_jobs.training.state import TrainState, Validation

SMOOTHING_STEPS = 50
# By model (best, last) and part (train, val, test).
Evaluations = dict[str, dict[str, Evaluation]]


# -- final figures ---------------------------------------------------------------------------------------------------


def best_model(state: TrainState) -> nn.Module:
    """A copy of the trained part with the weights of the lowest validation loss."""
    if state.best is None:
        raise DivergedError("no validation was reached, so there is no best model")
    model = copy.deepcopy(state.model)
    model.load_state_dict(state.best.weights)
    return model


def final_evaluations(state: TrainState, data: TrainingData, recipe: Recipe, spent: DeviceTime) -> Evaluations:
    """Both models on all three parts, in evaluation mode."""
    started = time.perf_counter()
    parts = dict(zip(names.PARTS, (data.train, data.validation, data.test), strict=True))

    def figures(model: nn.Module) -> dict[str, Evaluation]:
        return {name: evaluate(model, part, recipe.precision) for name, part in parts.items()}

    best = figures(best_model(state))
    same = state.best is not None and state.best.validation.step == state.step
    last = best if same else figures(state.model)
    spent.evaluation_seconds += time.perf_counter() - started
    return {"best": best, "last": last}


def final_metrics(state: TrainState, results: Evaluations) -> dict[str, float]:
    """``best/...`` and ``last/...`` by their names in MLflow, and ``best/step``."""
    metrics = {}
    for model, parts in results.items():
        for part, result in parts.items():
            metrics[names.final(model, part, "loss")] = result.loss
            metrics[names.final(model, part, "accuracy")] = result.accuracy
    if state.best:
        metrics[names.BEST_STEP] = float(state.best.validation.step)
    return metrics


def write_artifacts(
    task: Task, state: TrainState, results: Evaluations, data: TrainingData, classes: Sequence[str], folder: Path
) -> None:
    """Fills ``folder`` with what belongs at the root of the run's artifacts; files on the test set are of the best
    model."""
    validations = state.validations
    best_step = state.best.validation.step if state.best else state.step
    write_text(folder / names.HISTORY, history_csv(state.train_losses, validations))
    plot_losses(state.train_losses, validations, f"{task.name}: loss", folder / names.LOSS_PLOT)
    plot_accuracy(validations, best_step, f"{task.name}: validation accuracy", folder / names.ACCURACY_PLOT)

    logits = results["best"]["test"].logits
    labels, images = data.test.labels.cpu(), data.test.images.cpu()
    matrix = confusion_matrix(labels, logits.argmax(dim=1), len(classes))
    write_text(folder / names.CONFUSION, confusion_csv(matrix, classes))
    plot_mistakes(images, labels, logits, classes, folder / names.MISTAKES)
    _, height, width = images.shape[1:]
    # MLflow does not overwrite a model, which a killed attempt may have left here.
    shutil.rmtree(folder / names.MODEL, ignore_errors=True)
    network = whole_network(state.backbone, best_model(state))
    save_mlflow_model(network, task.transform, (3, height, width), folder / names.MODEL)


# -- tables ----------------------------------------------------------------------------------------------------------


def history_csv(train_losses: Sequence[float], validations: Iterable[Validation]) -> str:
    """A row a step: step, train_loss, and the figures of a validation after it. Without clock values: two runs of one
    recipe and seed give the same text."""
    by_step = {each.step: each for each in validations}
    rows: list[Sequence[object]] = [("step", "train_loss", "val_loss", "val_accuracy")]
    for step, loss in enumerate(train_losses, start=1):
        found = by_step.get(step)
        rows.append((step, repr(loss), *((repr(found.loss), repr(found.accuracy)) if found else ("", ""))))
    return _csv(rows)


def confusion_matrix(labels: torch.Tensor, predicted: torch.Tensor, classes: int) -> torch.Tensor:
    """Counts (classes, classes) int64: row = true class, column = predicted. labels, predicted: (N,) int64."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def confusion_csv(matrix: torch.Tensor, classes: Sequence[str]) -> str:
    """The matrix with the true class at the start of each row and the predicted ones in the header."""
    rows: list[Sequence[object]] = [("true \\ predicted", *classes)]
    rows += [(name, *counts) for name, counts in zip(classes, matrix.tolist(), strict=True)]
    return _csv(rows)


def _csv(rows: Iterable[Sequence[object]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def results_markdown(metrics: Mapping[str, float]) -> str:
    """Loss and accuracy of the best and the last model as a Markdown table; ``metrics`` by their names in MLflow."""
    lines = ["| Model | " + " | ".join(f"{part} loss | {part} acc." for part in names.PARTS) + " |"]
    lines.append("|---" * (1 + 2 * len(names.PARTS)) + "|")
    for model in names.MODELS:
        cells = [f"{metrics[names.final(model, part, figure)]:.4f}" for part in names.PARTS for figure in names.FIGURES]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


# -- plots -----------------------------------------------------------------------------------------------------------


def plot_losses(train_losses: Sequence[float], validations: Sequence[Validation], title: str, path: Path) -> Path:
    """Training loss of every step, its running mean, and the validation loss."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = np.arange(1, len(train_losses) + 1)
    axes.plot(steps, train_losses, color=SKY_BLUE, alpha=0.35, linewidth=0.6, label="training, each step")
    window = min(SMOOTHING_STEPS, len(train_losses))
    mean = np.convolve(train_losses, np.ones(window) / window, mode="valid")
    label = f"training, mean of {window} steps"
    axes.plot(steps[window - 1 :], mean, color=BLUE, linewidth=1.6, linestyle="--", label=label)
    at, losses = [each.step for each in validations], [each.loss for each in validations]
    axes.plot(at, losses, color=VERMILION, marker="o", markersize=4, label="validation")
    # A few huge losses of the first steps must not flatten the rest of the curve.
    top = max([np.percentile(train_losses, 99.5), *losses])
    axes.set(title=title, xlabel="optimiser step", ylabel="cross-entropy (nats)", ylim=(0, 1.05 * top))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    return save_figure(figure, path)


def plot_accuracy(validations: Sequence[Validation], best_step: int, title: str, path: Path) -> Path:
    """Validation accuracy, with the model of the lowest validation loss marked."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    at, percent = [each.step for each in validations], [100 * each.accuracy for each in validations]
    axes.plot(at, percent, color=VERMILION, marker="o", markersize=4, label="validation")
    axes.axvline(best_step, color=BLACK, linestyle=":", label=f"lowest validation loss, step {best_step}")
    axes.set(title=title, xlabel="optimiser step", ylabel="accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return save_figure(figure, path)


def plot_mistakes(
    images: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor, classes: Sequence[str], path: Path
) -> Path:
    """The wrong predictions with the highest probability, in that order, with predicted and true class.

    images: (N, 3, H, W) uint8; labels: (N,) int64; logits: (N, classes) float.
    """
    chosen = most_confident_mistakes(labels, logits)
    probabilities = logits.softmax(dim=1)
    rows = max(1, -(-len(chosen) // 6))
    figure = Figure(figsize=(10, 2.15 * rows + 0.4), layout="constrained")
    figure.suptitle("Most confident mistakes on the test set" if len(chosen) else "No mistakes on the test set")
    for axes in figure.subplots(rows, 6, squeeze=False).flat:
        axes.set_axis_off()
    for axes, index in zip(figure.axes, chosen.tolist(), strict=False):
        axes.imshow(images[index].permute(1, 2, 0).numpy(), interpolation="nearest")
        predicted = int(logits[index].argmax())
        percent = 100 * float(probabilities[index, predicted])
        title = f"predicted {classes[predicted]}, {percent:.1f} %\ntrue: {classes[int(labels[index])]}"
        axes.set_title(title, fontsize=9)
    return save_figure(figure, path)


def most_confident_mistakes(labels: torch.Tensor, logits: torch.Tensor, count: int = 12) -> torch.Tensor:
    """Indices (at most ``count``,) of wrong predictions, highest probability first."""
    # In double precision: float32 rounds every probability above 1 - 6e-8 to 1 and cannot order them.
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    wrong = (predicted != labels).nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:count]
