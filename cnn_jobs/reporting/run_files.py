"""The text files of one run: history, confusion matrix, description."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CurvePoint:
    """Figures on the validation set after ``step`` steps; loss in nats, accuracy in [0, 1]."""

    step: int
    loss: float
    accuracy: float


def history_csv(train_losses: Sequence[float], validations: Iterable[CurvePoint]) -> str:
    """A row a step: step, train_loss, and the validation's figures where one followed. No clock in it: two
    runs of one recipe and seed give the same text."""
    by_step = {point.step: point for point in validations}
    rows: list[Sequence[object]] = [("step", "train_loss", "val_loss", "val_accuracy")]
    for step, loss in enumerate(train_losses, start=1):
        point = by_step.get(step)
        rows.append((step, repr(loss), *((repr(point.loss), repr(point.accuracy)) if point else ("", ""))))
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


FIGURES = ("train", "val", "test")


def results_markdown(metrics: Mapping[str, float]) -> str:
    """Loss and accuracy of the best and the last model as a Markdown table; ``metrics`` as logged."""
    lines = ["| Model | " + " | ".join(f"{part} loss | {part} acc." for part in FIGURES) + " |"]
    lines.append("|---" * (1 + 2 * len(FIGURES)) + "|")
    for model in ("best", "last"):
        cells = [
            f"{metrics[f'{model}/{part}_loss']:.4f} | {metrics[f'{model}/{part}_accuracy']:.4f}" for part in FIGURES
        ]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
