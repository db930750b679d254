"""Files of a run: plots, history, confusion matrix and results."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cnn_jobs.runs import artifacts
from cnn_jobs.runs.artifacts import confusion_csv, confusion_matrix, history_csv, results_markdown
from cnn_jobs.training.state import Validation

LOSSES = [2.0 / step for step in range(1, 121)]
POINTS = [Validation(60, 0.5, 0.6), Validation(120, 0.4, 0.7)]
CLASSES = ["cat", "dog", "owl"]
IMAGES = torch.arange(20 * 3 * 4 * 4, dtype=torch.int64).remainder(256).to(torch.uint8).reshape(20, 3, 4, 4)


def mistakes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and logits of 20 predictions; the first ``count`` are wrong, each more confident than the one before."""
    labels = torch.zeros(20, dtype=torch.int64)
    logits = torch.tensor([[1.0, 0.0, 0.0]] * 20)
    for index in range(count):
        logits[index] = torch.tensor([0.0, 1.0 + index, 0.0])
    return labels, logits


def plot_losses(path: Path) -> Path:
    return artifacts.plot_losses(LOSSES, POINTS, "task2: loss", path)


def plot_accuracy(path: Path) -> Path:
    return artifacts.plot_accuracy(POINTS, 120, "task2: accuracy", path)


def plot_mistakes(path: Path) -> Path:
    return artifacts.plot_mistakes(IMAGES, *mistakes(7), CLASSES, path)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    figures: list[Figure] = []
    save = artifacts.save_figure

    def keep(figure: Figure, path: Path) -> Path:
        figures.append(figure)
        return save(figure, path)

    monkeypatch.setattr(artifacts, "save_figure", keep)
    return figures


@pytest.mark.parametrize(
    ("plot", "size"),
    [
        (plot_losses, (880, 495)),
        (plot_accuracy, (880, 495)),
        (plot_mistakes, (1100, 517)),
    ],
)
def test_plots_are_reproducible_pngs(plot: Callable[[Path], Path], size: tuple[int, int], tmp_path: Path) -> None:
    path = plot(tmp_path / "plots" / "x.png")
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", size)
        assert len(image.convert("RGB").getcolors(10**6) or []) > 10  # more than a blank image
        assert "Software" not in image.info
    again = plot(tmp_path / "y.png")
    assert again.read_bytes() == path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == ["x.png"]


def lines_of(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    return {
        str(line.get_label()): list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.get_lines()
    }


def test_curves_are_at_their_steps(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_losses(tmp_path / "x.png")
    axes = drawn[0].axes[0]
    lines = lines_of(axes)
    assert lines["training, each step"] == list(enumerate(LOSSES, start=1))
    assert lines["validation"] == [(60, 0.5), (120, 0.4)]
    mean = lines["training, mean of 50 steps"]
    assert [step for step, _ in mean] == list(range(50, 121))
    assert mean[0][1] == pytest.approx(sum(LOSSES[:50]) / 50)
    assert mean[-1][1] == pytest.approx(sum(LOSSES[-50:]) / 50)
    assert axes.get_title() == "task2: loss"


def test_training_of_one_step_has_a_plot(tmp_path: Path) -> None:
    assert artifacts.plot_losses([1.5], [Validation(1, 1.4, 0.5)], "short", tmp_path / "x.png").stat().st_size > 1000


def test_axis_ignores_huge_first_losses_but_includes_every_validation(tmp_path: Path, drawn: list[Figure]) -> None:
    artifacts.plot_losses([1e6, *[1.0] * 999], [Validation(1000, 2.0, 0.5)], "x", tmp_path / "x.png")
    assert 2.0 < drawn[0].axes[0].get_ylim()[1] < 10


def test_accuracy_is_in_percent_with_the_best_step_marked(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_accuracy(tmp_path / "x.png")
    lines = lines_of(drawn[0].axes[0])
    assert lines["validation"] == [(60, pytest.approx(60)), (120, pytest.approx(70))]
    assert [x for x, _ in lines["lowest validation loss, step 120"]] == [120, 120]


def test_most_confident_mistakes_come_first() -> None:
    logits = torch.tensor([[0.0, 3.0], [0.0, 1.0], [0.0, 2.0], [5.0, 0.0], [2.0, 0.0]])
    labels = torch.tensor([0, 0, 0, 0, 1])
    # Predictions 0, 1, 2 and 4 are wrong; 2 and 4 are equally confident and stay in their order.
    assert artifacts.most_confident_mistakes(labels, logits).tolist() == [0, 2, 4, 1]
    assert artifacts.most_confident_mistakes(labels, logits, count=2).tolist() == [0, 2]


def test_at_most_twelve_mistakes_are_shown() -> None:
    assert artifacts.most_confident_mistakes(*mistakes(20)).tolist() == list(range(19, 7, -1))
    assert artifacts.most_confident_mistakes(*mistakes(0)).tolist() == []


def test_mistakes_are_shown_with_prediction_confidence_and_truth(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_mistakes(tmp_path / "x.png")
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert len(titles) == 12
    sure = [100 * float(torch.tensor([0.0, 1.0 + index, 0.0]).softmax(0)[1]) for index in range(6, -1, -1)]
    assert titles[:7] == [f"predicted dog, {percent:.1f} %\ntrue: cat" for percent in sure]
    assert titles[7:] == [""] * 5
    shown = drawn[0].axes[0].get_images()[0].get_array()
    assert shown is not None
    assert (shown == IMAGES[6].permute(1, 2, 0).numpy()).all()
    assert drawn[0].get_suptitle() == "Most confident mistakes on the test set"


def test_plot_without_mistakes(tmp_path: Path, drawn: list[Figure]) -> None:
    path = artifacts.plot_mistakes(IMAGES, *mistakes(0), CLASSES, tmp_path / "x.png")
    assert drawn[0].get_suptitle() == "No mistakes on the test set"
    assert not any(axes.get_images() for axes in drawn[0].axes)
    with Image.open(path) as image:
        assert image.format == "PNG"


def test_history_has_a_row_per_step_with_the_validations() -> None:
    text = history_csv([2.5, 0.1 + 0.2, 1.0], [Validation(2, 1.25, 0.5), Validation(3, 1 / 3, 0.75)])
    assert text == (
        "step,train_loss,val_loss,val_accuracy\n"
        "1,2.5,,\n"
        "2,0.30000000000000004,1.25,0.5\n"
        "3,1.0,0.3333333333333333,0.75\n"
    )


def test_confusion_matrix() -> None:
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    predicted = torch.tensor([0, 1, 1, 0, 2, 2])
    matrix = confusion_matrix(labels, predicted, 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert matrix.dtype == torch.int64


def test_absent_classes_have_rows_and_columns_of_zeros() -> None:
    matrix = confusion_matrix(torch.tensor([1]), torch.tensor([0]), 4)
    assert matrix.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert confusion_matrix(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64), 2).sum() == 0


def test_confusion_table_names_true_and_predicted_classes() -> None:
    text = confusion_csv(torch.tensor([[5, 1], [0, 7]]), ["cat", "dog, wild"])
    assert list(csv.reader(io.StringIO(text))) == [
        ["true \\ predicted", "cat", "dog, wild"],
        ["cat", "5", "1"],
        ["dog, wild", "0", "7"],
    ]


def test_results_table() -> None:
    metrics = {
        f"{model}/{part}_{kind}": place / 100 + row
        for row, model in enumerate(("best", "last"))
        for place, (part, kind) in enumerate(
            (part, kind) for part in ("train", "val", "test") for kind in ("loss", "accuracy")
        )
    }
    lines = results_markdown(metrics).splitlines()
    assert lines[0] == "| Model | train loss | train acc. | val loss | val acc. | test loss | test acc. |"
    assert lines[1] == "|---" * 7 + "|"
    assert lines[2:] == [
        "| best | 0.0000 | 0.0100 | 0.0200 | 0.0300 | 0.0400 | 0.0500 |",
        "| last | 1.0000 | 1.0100 | 1.0200 | 1.0300 | 1.0400 | 1.0500 |",
    ]
