"""What a trained network leaves behind: final figures, tables, pictures, the MLflow model."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from cnn_jobs.data.batches import TrainingData
from cnn_jobs.errors import DivergedError
from cnn_jobs.files import write_text
from cnn_jobs.models.build import whole_network
from cnn_jobs.recipe import Recipe
from cnn_jobs.reporting import plots, run_files
from cnn_jobs.tasks import Task
from cnn_jobs.tracking.model_export import save_mlflow_model
from cnn_jobs.training.evaluation import Evaluation, evaluate
from cnn_jobs.training.loop import Ledger
from cnn_jobs.training.state import TrainState

# By model (best, last) and part (train, val, test).
Evaluations = dict[str, dict[str, Evaluation]]


def best_model(state: TrainState) -> nn.Module:
    """A copy of the trained part with the weights of the lowest validation loss."""
    if state.best is None:
        raise DivergedError("no validation was reached, so there is no best model")
    model = copy.deepcopy(state.model)
    model.load_state_dict(state.best.weights)
    return model


def final_evaluations(state: TrainState, data: TrainingData, recipe: Recipe, ledger: Ledger) -> Evaluations:
    """Both models on all three parts, dropout off and BatchNorm on its running statistics."""
    started = time.perf_counter()
    parts = {"train": data.train, "val": data.validation, "test": data.test}

    def figures(model: nn.Module) -> dict[str, Evaluation]:
        return {name: evaluate(model, part, recipe.precision) for name, part in parts.items()}

    best = figures(best_model(state))
    same = state.best is not None and state.best.validation.step == state.step
    last = best if same else figures(state.model)
    ledger.evaluation_seconds += time.perf_counter() - started
    return {"best": best, "last": last}


def final_metrics(state: TrainState, results: Evaluations) -> dict[str, float]:
    """``best/...`` and ``last/...`` by their names in MLflow, and ``best/step``."""
    metrics = {}
    for model, parts in results.items():
        for part, result in parts.items():
            metrics[f"{model}/{part}_loss"] = result.loss
            metrics[f"{model}/{part}_accuracy"] = result.accuracy
    if state.best:
        metrics["best/step"] = float(state.best.validation.step)
    return metrics


def write(
    task: Task,
    state: TrainState,
    results: Evaluations,
    data: TrainingData,
    classes: Sequence[str],
    folder: Path,
) -> None:
    """Fills ``folder`` with what belongs at the root of the run's artifacts; test-set files are of the best model."""
    points = [run_files.CurvePoint(v.step, v.loss, v.accuracy) for v in state.validations]
    best_step = state.best.validation.step if state.best else state.step
    write_text(folder / "history.csv", run_files.history_csv(state.train_losses, points))
    title = f"{task.name}: loss"
    plots.plot_losses(state.train_losses, points, title, folder / "plots" / "loss.png")
    title = f"{task.name}: validation accuracy"
    plots.plot_accuracy(points, best_step, title, folder / "plots" / "accuracy.png")

    logits = results["best"]["test"].logits
    labels, images = data.test.labels.cpu(), data.test.images.cpu()
    matrix = run_files.confusion_matrix(labels, logits.argmax(dim=1), len(classes))
    write_text(folder / "confusion.csv", run_files.confusion_csv(matrix, classes))
    plots.plot_mistakes(images, labels, logits, classes, folder / "mistakes.png")
    _, height, width = images.shape[1:]
    # What an attempt that was killed here has left: MLflow writes no model over another.
    shutil.rmtree(folder / "model", ignore_errors=True)
    save_mlflow_model(
        whole_network(state.frozen, best_model(state)), task.transform, (3, height, width), folder / "model"
    )
