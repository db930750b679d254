"""Tasks 4b and 4c from the command line: pictures, tables, and a run in MLflow."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from cnn_jobs.cli import cli
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.errors import CheckpointMismatchError, CnnJobsError, StateDirError
from cnn_jobs.networks.spec import ResNet18
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking.run_reader import runs_of
from cnn_jobs.training.checkpoint import load_checkpoint, save_checkpoint

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def weights(resnet18_file: Path, tmp_path: Path) -> Path:
    """ResNet18 with hand-made filters in place of those that the course report shows."""
    y, x = torch.meshgrid(torch.arange(-3.0, 4), torch.arange(-3.0, 4), indexing="ij")
    window = torch.exp(-(x**2 + y**2) / 8)
    content = torch.load(resnet18_file)
    for index, (profile, colour) in {
        14: (window * torch.cos(2 * torch.pi * x / 4), (1.0, 1.0, 1.0)),
        26: (window * torch.cos(2 * torch.pi * y / 4), (1.0, 1.0, 1.0)),
        32: (window, (-0.4, -0.2, 1.0)),
        49: (window * torch.sin(2 * torch.pi * (x + y) / 5.6), (1.0, 1.0, 1.0)),
        52: (window, (0.5, 0.6, -1.0)),
    }.items():
        content["conv1.weight"][index] = 0.3 * torch.tensor(colour)[:, None, None] * profile
    torch.save(content, tmp_path / "known.pth")
    return tmp_path / "known.pth"


@pytest.fixture(autouse=True)
def _mlflow(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def interpret(*arguments: object) -> str:
    result = call("interpret", *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_task4b_measures_the_reports_filters(weights: Path, tmp_path: Path, mlflow_uri: str) -> None:
    output = interpret("task4b", "--weights", weights, "--out", tmp_path / "out")
    expected = {
        "14": ("vertical stripes in brightness, 4.0 px a period", "vertical stripes"),
        "26": ("horizontal stripes in brightness, 4.0 px a period", "horizontal stripes"),
        "32": ("blob in blue against yellow", "blue sky"),
        "49": ("rising edge in brightness", "diagonal stripes"),
        "52": ("blob in yellow against blue", "yellow grass"),
    }
    table = rows(tmp_path / "out" / "measurements.csv")
    assert [row["filter"] for row in table] == list(expected)
    for row in table:
        words, region = expected[row["filter"]]
        assert words in output
        assert row["strongest in"] == region
    with Image.open(tmp_path / "out" / "filters.png") as picture:
        assert picture.width > 800
        assert picture.height > picture.width
    experiment = client(mlflow_uri).get_experiment_by_name("cnn-jobs")
    (run,) = client(mlflow_uri).search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.tags["cnn_jobs.task"]) == ("FINISHED", "task4b")
    assert run.data.params["filters"] == "14,26,32,49,52"
    assert run.data.params["layer"] == "conv1"
    names = {each.path for each in client(mlflow_uri).list_artifacts(run.info.run_id)}
    assert names == {"filters.png", "measurements.csv", "measurements.md"}
    assert run.info.run_id in output
    assert runs_of(mlflow_uri, "cnn-jobs") == []


def test_task4c_measures_ten_channels_of_a_photograph(weights: Path, tmp_path: Path) -> None:
    Image.effect_noise((300, 250), 80).convert("RGB").save(tmp_path / "photo.jpg")
    output = interpret("task4c", "--weights", weights, "--image", tmp_path / "photo.jpg", "--out", tmp_path, "--no-log")
    table = rows(tmp_path / "measurements.csv")
    assert [row["channel"] for row in table] == [str(number) for number in range(10)]
    assert all(0 <= float(row["share zero"]) <= 1 and float(row["highest"]) >= 0 for row in table)
    assert "activations of layer4" in output
    assert "In MLflow" not in output
    assert (tmp_path / "channels.png").stat().st_size > 10_000


def test_pictures_are_reproducible(weights: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        interpret("task4c", "--weights", weights, "--out", tmp_path / name, "--filters", "0-2", "--no-log")
    assert (tmp_path / "one/channels.png").read_bytes() == (tmp_path / "other/channels.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["task4d"], "'task4d' is not an interpretation; choose task4b or task4c"),
        (["task4b", "--filters", "14,64"], "--filters names 64, but conv1 has 64: name some of 0 to 63"),
        (["task4b", "--filters", "3-1"], "--filters is '3-1'"),
        (["task4b", "--filters", "3,3"], "names a number twice"),
        (["task4b", "--layer", "layer4"], "task4b shows filters: name a convolution"),
        (["task4b", "--layer", "conv9"], "its convolutions are conv1, layer1.0.conv1"),
        (["task4c", "--layer", "fc"], "whose output is no picture"),
        (["task4b", "--image", "none.png"], "none.png: no such file"),
        (["task4b", "--run", "abc"], "--run and --weights name two networks"),
    ],
)
def test_bad_input_is_rejected_in_one_line(weights: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    result = call("interpret", *arguments, "--weights", weights, "--out", tmp_path / "out", "--no-log")
    assert isinstance(result.exception, CnnJobsError), result.output
    assert words in str(result.exception)
    assert "\n" not in str(result.exception)
    assert result.exception.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_random_weights_are_noted(tmp_path: Path) -> None:
    assert "note: random weights" in interpret("task4b", "--weights", "none", "--out", tmp_path, "--no-log")


# -- networks of training runs -----------------------------------------------------------------------------------------


def train(uri: str, dataset: Dataset, task: str, *arguments: object) -> str:
    """Trains for one epoch; the run's id."""
    write_prepared(dataset, Path("data.npz"), compressed=False)
    settings = ("--epochs", 1, "--batch-size", 9, "--threads", 1, "--device", "cpu", "--experiment", "trained")
    result = call("train", task, "--data", "data.npz", *settings, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    (run,) = client(uri).search_runs([client(uri).get_experiment_by_name("trained").experiment_id])
    return str(run.info.run_id)


def test_network_of_a_run(mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset) -> None:
    run_id = train(mlflow_uri, tiny_dataset, "task2")
    output = interpret("task4b", "--run", run_id, "--out", tmp_path / "b", "--no-log")
    assert [row["filter"] for row in rows(tmp_path / "b/measurements.csv")] == ["0", "1", "2", "3", "4"]
    assert "task2-seed0: filters of conv1" in output
    output = interpret("task4c", "--run", run_id, "--out", tmp_path / "c", "--no-log")
    assert "task2-seed0: activations of conv3" in output
    assert len(rows(tmp_path / "c/measurements.csv")) == 10


@pytest.mark.slow
def test_transferred_network_of_a_run_has_its_backbone_and_head(
    mlflow_uri: str, tmp_path: Path, tiny_dataset: Dataset, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, "task4a", replace(TASKS["task4a"], network=ResNet18(side=64)))
    run_id = train(mlflow_uri, tiny_dataset, "task4a", "--weights", weights)
    output = interpret("task4b", "--run", run_id, "--out", tmp_path / "b", "--no-log")
    # The frozen backbone has the filters of the weights file.
    assert "vertical stripes in brightness" in output
    output = interpret("task4c", "--run", run_id, "--out", tmp_path / "c", "--no-log")
    assert "activations of trained.layer4" in output


def test_network_for_wide_images_and_an_old_checkpoint(mlflow_uri: str, tmp_path: Path) -> None:
    wide = Dataset.from_arrays(
        name="wide",
        uri="wide",
        classes=("a", "b"),
        train=(np.zeros((30, 3, 16, 32), np.uint8), np.arange(30) % 2),
        test=(np.zeros((4, 3, 16, 32), np.uint8), np.arange(4) % 2),
    )
    run_id = train(mlflow_uri, wide, "task2")
    interpret("task4c", "--run", run_id, "--out", tmp_path / "c", "--no-log")
    (path,) = (tmp_path / "state").glob("*/checkpoints/best.pt")
    old = load_checkpoint(path)
    del old["image"]
    save_checkpoint(tmp_path / "best.pt", old)
    client(mlflow_uri).log_artifact(run_id, str(tmp_path / "best.pt"), "checkpoints")
    result = call("interpret", "task4c", "--run", run_id, "--out", tmp_path / "c", "--no-log")
    assert isinstance(result.exception, CheckpointMismatchError)
    assert "is of another version of cnn-jobs ('image'); train it again" in str(result.exception)
    assert "\n" not in str(result.exception)


def test_output_folder_that_cannot_be_written(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    result = call("interpret", "task4b", "--weights", weights, "--out", tmp_path / "out" / "below", "--no-log")
    assert isinstance(result.exception, StateDirError)


def test_run_without_checkpoint_is_rejected(mlflow_uri: str, tmp_path: Path) -> None:
    for run_id in ("0" * 32, client(mlflow_uri).create_run("0").info.run_id):
        result = call("interpret", "task4b", "--run", run_id, "--out", tmp_path, "--no-log")
        assert isinstance(result.exception, CnnJobsError)
        assert run_id in str(result.exception)
        assert result.exception.exit_code == 2
