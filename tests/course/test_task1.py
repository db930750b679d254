"""The answers to task 1 are those of the course's own text, and the report's mistakes are found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from cnn_jobs.cli import cli
from cnn_jobs.course import task1
from cnn_jobs.tracking.run_reader import runs_of

ANSWERS = {
    "1a": "2 -1 11 -2 -13 / 10 -4 8 2 -18 / 14 -1 -5 6 -9",
    "1b": "pooling layers",
    "1c": "2",
    "1d": "9x9",
    "1e": "252x252",
    "1f": "250x250",
    "1g": "390,410",
}
MATRICES = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda sides: st.lists(
        st.lists(st.integers(-9, 9), min_size=sides[1], max_size=sides[1]), min_size=sides[0], max_size=sides[0]
    )
)


def test_answers_and_verdicts_on_the_report() -> None:
    parts = task1.answers()
    assert {each.part: each.short for each in parts} == ANSWERS
    assert [each.part for each in parts if each.mistake] == ["1b", "1g"]
    assert "224" in parts[-1].verdict  # 390,410 - 390,186: the biases of the convolutions
    assert all("report" not in each.report for each in parts)


def test_working_shows_the_padded_image_and_every_layer() -> None:
    working = {each.part: "\n".join(each.working) for each in task1.answers()}
    assert "0  1  0  2  3  1  0" in working["1a"]
    assert working["1a"].count("0  0  0  0  0  0  0") == 2
    for parameters in ("2,432", "51,264", "204,928", "131,136", "650"):
        assert f"= {parameters}" in working["1g"]


def test_wrong_report_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task1, "REPORTED_COLUMN", [2, 10, 13])
    assert task1.answers()[0].verdict == "wrong: the first column is 2, 10, 14"


def test_command_prints_every_answer_with_its_working() -> None:
    result = CliRunner().invoke(cli, ["arithmetic"], catch_exceptions=False)
    assert result.exit_code == 0
    for each in task1.answers():
        assert each.question in result.output
        assert all(line in result.output for line in each.working)
    assert result.output.count(" wrong ") == 2


def test_answers_are_stored_in_mlflow(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    result = CliRunner().invoke(cli, ["arithmetic", "--log", "--experiment", "course"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    client = MlflowClient(mlflow_uri)
    experiment = client.get_experiment_by_name("course")
    assert experiment
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_id in result.output
    page = Path(client.download_artifacts(run.info.run_id, "arithmetic.md")).read_text(encoding="utf-8")
    assert all(each.question in page for each in task1.answers())
    assert runs_of(mlflow_uri, "course") == []  # nothing was trained: no comparison includes it


@given(image=MATRICES, kernel=MATRICES, padding=st.integers(0, 2))
def test_cross_correlation_is_torchs_convolution(image: list[list[int]], kernel: list[list[int]], padding: int) -> None:
    assume(len(kernel) <= len(image) + 2 * padding and len(kernel[0]) <= len(image[0]) + 2 * padding)
    pixels, weights = (torch.tensor(each, dtype=torch.double)[None, None] for each in (image, kernel))
    expected = nn.functional.conv2d(pixels, weights, padding=padding)[0, 0]
    assert task1.cross_correlate(image, kernel, padding=padding) == expected.tolist()


@given(image=MATRICES, kernel=st.integers(1, 3), stride=st.integers(1, 3))
def test_max_pooling_is_torchs(image: list[list[int]], kernel: int, stride: int) -> None:
    assume(kernel <= min(len(image), len(image[0])))
    expected = nn.functional.max_pool2d(torch.tensor(image, dtype=torch.double)[None], kernel, stride)[0]
    assert task1.max_pool(image, kernel, stride) == expected.tolist()
