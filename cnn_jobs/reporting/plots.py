"""Pictures of one run: loss and accuracy curves, and its most confident mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from cnn_jobs.reporting.figure_file import save_figure
from cnn_jobs.reporting.run_files import CurvePoint

# From Okabe and Ito's palette: told apart by colour-blind readers, and of different brightness in grey.
TRAIN_COLOUR, VAL_COLOUR, BEST_COLOUR = "#56B4E9", "#D55E00", "#000000"
SMOOTHING_STEPS = 50


def plot_losses(train_losses: Sequence[float], validations: Sequence[CurvePoint], title: str, path: Path) -> Path:
    """Training loss of every step, its running mean, and the validation loss."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = np.arange(1, len(train_losses) + 1)
    axes.plot(steps, train_losses, color=TRAIN_COLOUR, alpha=0.35, linewidth=0.6, label="training, each step")
    window = min(SMOOTHING_STEPS, len(train_losses))
    mean = np.convolve(train_losses, np.ones(window) / window, mode="valid")
    label = f"training, mean of {window} steps"
    axes.plot(steps[window - 1 :], mean, color="#0072B2", linewidth=1.6, linestyle="--", label=label)
    axes.plot(
        [point.step for point in validations],
        [point.loss for point in validations],
        color=VAL_COLOUR,
        marker="o",
        markersize=4,
        label="validation",
    )
    # A few huge losses of the first steps must not flatten the rest of the curve.
    top = max([np.percentile(train_losses, 99.5), *(point.loss for point in validations)])
    axes.set(title=title, xlabel="optimiser step", ylabel="cross-entropy (nats)", ylim=(0, 1.05 * top))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    return save_figure(figure, path)


def plot_accuracy(validations: Sequence[CurvePoint], best_step: int, title: str, path: Path) -> Path:
    """Validation accuracy, with the model of the lowest validation loss marked."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = [point.step for point in validations]
    percent = [100 * point.accuracy for point in validations]
    axes.plot(steps, percent, color=VAL_COLOUR, marker="o", markersize=4, label="validation")
    axes.axvline(best_step, color=BEST_COLOUR, linestyle=":", label=f"lowest validation loss, step {best_step}")
    axes.set(title=title, xlabel="optimiser step", ylabel="accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return save_figure(figure, path)


def plot_mistakes(
    images: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor, classes: Sequence[str], path: Path
) -> Path:
    """The wrong answers that the model was surest of, surest first, with what it said and what was true.

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
        said = int(logits[index].argmax())
        sure = float(probabilities[index, said])
        axes.set_title(
            f"said {classes[said]}, {100 * sure:.1f} %\ntrue: {classes[int(labels[index])]}",
            fontsize=9,
        )
    return save_figure(figure, path)


def most_confident_mistakes(labels: torch.Tensor, logits: torch.Tensor, count: int = 12) -> torch.Tensor:
    """Indices (at most ``count``,) of wrong answers, highest probability of the answer first."""
    # In double: float32 rounds every probability above 1 - 6e-8 to 1, and cannot tell the surest apart.
    confidence, answers = logits.double().softmax(dim=1).max(dim=1)
    wrong = (answers != labels).nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:count]
