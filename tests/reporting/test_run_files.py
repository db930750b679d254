import csv
import io

import pytest
import torch

from cnn_jobs.runs.artifacts import CurvePoint, confusion_csv, confusion_matrix, history_csv, results_markdown


def test_the_history_has_a_row_a_step_and_the_validations_beside_it() -> None:
    text = history_csv([2.5, 0.1 + 0.2, 1.0], [CurvePoint(2, 1.25, 0.5), CurvePoint(3, 1 / 3, 0.75)])
    assert text == (
        "step,train_loss,val_loss,val_accuracy\n"
        "1,2.5,,\n"
        "2,0.30000000000000004,1.25,0.5\n"
        "3,1.0,0.3333333333333333,0.75\n"
    )


def test_the_history_keeps_every_bit_and_holds_no_clock() -> None:
    losses = torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist()
    text = history_csv(losses, [])
    assert history_csv(losses, []) == text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["train_loss"]) for row in rows] == losses
    assert set(rows[0]) == {"step", "train_loss", "val_loss", "val_accuracy"}


def test_a_history_without_steps_is_its_header() -> None:
    assert history_csv([], []) == "step,train_loss,val_loss,val_accuracy\n"


def test_a_known_confusion_matrix() -> None:
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    predicted = torch.tensor([0, 1, 1, 0, 2, 2])
    matrix = confusion_matrix(labels, predicted, 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert matrix.dtype == torch.int64


def test_classes_that_never_come_have_rows_and_columns_of_zeros() -> None:
    matrix = confusion_matrix(torch.tensor([1]), torch.tensor([0]), 4)
    assert matrix.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert confusion_matrix(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64), 2).sum() == 0


def test_the_confusion_table_names_true_and_predicted_classes() -> None:
    text = confusion_csv(torch.tensor([[5, 1], [0, 7]]), ["cat", "dog, wild"])
    assert list(csv.reader(io.StringIO(text))) == [
        ["true \\ predicted", "cat", "dog, wild"],
        ["cat", "5", "1"],
        ["dog, wild", "0", "7"],
    ]


def test_a_confusion_table_without_a_name_for_every_class_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        confusion_csv(torch.zeros(2, 2, dtype=torch.int64), ["cat"])


def test_the_results_stand_in_the_column_of_their_part() -> None:
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
