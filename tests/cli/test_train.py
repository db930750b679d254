"""``cnn-jobs train`` and ``cnn-jobs runs`` as a shell calls them: exit codes, and one line for each mistake."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_jobs.cli import console, main
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.runs.setup import RunOptions, RunResult
from cnn_jobs.tasks import TASKS
from tests.helpers.datasets import striped_dataset
from tests.helpers.tracking import answering, unused_address

# MLflow and torch.export raise warnings of their own when a model is saved.
pytestmark = pytest.mark.filterwarnings("default")


class Ended:
    """What a command printed and ended with."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command line in this process, as ``main`` does for the shell."""

    def run(*args: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["cnn-jobs", *map(str, args)])
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture
def small_file(tmp_path: Path, tiny_dataset: Dataset) -> Path:
    path = tmp_path / "small.npz"
    write_prepared(tiny_dataset, path, compressed=False)
    return path


@pytest.fixture(autouse=True)
def _database(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)


def pictures(folder: Path, *, sizes: tuple[tuple[int, int], ...] = ((8, 8), (8, 8))) -> Path:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for number, size in enumerate(sizes):
                Image.fromarray(np.zeros((*size, 3), np.uint8)).save(folder / split / name / f"{number}.png")
    return folder


def test_a_run_ends_with_its_table_its_page_and_how_to_compare(call, small_file: Path, mlflow_uri: str) -> None:
    ended = call("train", "task2", "--data", small_file, "--epochs", 1, "--batch-size", 8, "--threads", 1)
    assert ended.code == 0, ended.err
    assert "best" in ended.out
    assert "last" in ended.out
    assert mlflow_uri in ended.out
    compare = f"MLFLOW_TRACKING_URI={mlflow_uri} cnn-jobs runs --experiment cnn-jobs"
    assert compare in ended.out
    assert "val accuracy" in ended.err

    listed = call("runs", "--experiment", "cnn-jobs")
    assert listed.code == 0
    assert "task2-seed0" in listed.out
    assert "finished" in listed.out
    assert "1 run in experiment" in listed.out


def test_an_option_comes_from_the_environment_and_the_command_line_wins(
    call, small_file: Path, monkeypatch: pytest.MonkeyPatch, mlflow_uri: str
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("CNN_JOBS_EPOCHS", "2")
    monkeypatch.setenv("CNN_JOBS_BATCH_SIZE", "8")
    monkeypatch.setenv("CNN_JOBS_DATA", str(small_file))
    assert call("train", "task2", "--epochs", 1, "--threads", 1).code == 0
    client = MlflowClient(mlflow_uri)
    (found,) = client.search_runs([client.get_experiment_by_name("cnn-jobs").experiment_id])
    assert (found.data.params["epochs"], found.data.params["batch_size"]) == ("1", "8")


def test_a_series_of_one_run_keeps_the_keys_of_the_command(call, small_file: Path, mlflow_uri: str) -> None:
    from mlflow import MlflowClient

    small = ("train", "task2", "--data", small_file, "--epochs", 1, "--batch-size", 8, "--threads", 1)
    assert call(*small, "--seeds", "0-3", "--point", 2, "--run-key", "mine").code == 0
    client = MlflowClient(mlflow_uri)
    (found,) = client.search_runs([client.get_experiment_by_name("cnn-jobs").experiment_id])
    assert (found.info.run_name, found.data.tags["cnn_jobs.run_key"]) == ("task2-seed2", "mine")
    assert "mlflow.parentRunId" not in found.data.tags


def test_a_grid_of_runs_has_one_parent(call, small_file: Path, mlflow_uri: str) -> None:
    from mlflow import MlflowClient

    args = ("train", "task2", "--data", small_file, "--epochs", 1, "--batch-size", 8, "--threads", 1)
    ended = call(*args, "--seeds", "0-1", "--sweep", "lr=0.01,0.02")
    assert ended.code == 0, ended.err
    client = MlflowClient(mlflow_uri)
    found = client.search_runs([client.get_experiment_by_name("cnn-jobs").experiment_id])
    (parent,) = [run for run in found if run.data.tags.get("cnn_jobs.role") == "parent"]
    children = [run for run in found if run is not parent]
    assert {(run.data.params["lr"], run.data.params["seed"]) for run in children} == {
        ("0.01", "0"), ("0.01", "1"), ("0.02", "0"), ("0.02", "1"),
    }  # fmt: skip
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.data.tags["cnn_jobs.group"] for run in found} == {parent.data.tags["cnn_jobs.group"]}
    assert {run.info.status for run in found} == {"FINISHED"}
    groups = {run.data.params["lr"]: run.data.tags["cnn_jobs.group_hash"] for run in children}
    assert len({run.data.tags["cnn_jobs.group_hash"] for run in children}) == 2 == len(set(groups.values()))
    assert "4 runs" in call("runs").out


def test_one_that_diverges_does_not_stop_the_others(call, small_file: Path, mlflow_uri: str) -> None:
    from mlflow import MlflowClient

    args = ("train", "task2", "--data", small_file, "--epochs", 2, "--batch-size", 8, "--threads", 1)
    ended = call(*args, "--sweep", "lr=1e12,0.01")
    assert ended.code == 2
    assert "lr1000000000000.0: the training loss is" in ended.err
    client = MlflowClient(mlflow_uri)
    found = client.search_runs([client.get_experiment_by_name("cnn-jobs").experiment_id])
    status = {run.info.run_name: run.info.status for run in found}
    assert status == {"task2-lr1000000000000.0": "FAILED", "task2-lr0.01": "FINISHED", "task2-2-runs": "FAILED"}


TRAIN = ("train", "task2", "--data", "shapes")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("train", "task9"), "unknown task 'task9'; the tasks are task2, task3-arch1"),
        ((*TRAIN, "--epochs", "0"), "epochs is 0, but must be at least 1"),
        ((*TRAIN, "--lr", "-1"), "lr is -1.0, but must be a finite number above 0"),
        ((*TRAIN, "--lr", "nan"), "lr is nan, but must be a finite number above 0"),
        ((*TRAIN, "--batch-size", "100000"), "batch_size 100000 is larger than the 5400 training images"),
        ((*TRAIN, "--validation-fraction", "0.00001"), "leaves 0 for validation"),
        ((*TRAIN, "--validations-per-epoch", "99999"), "is more than the"),
        ((*TRAIN, "--optimizer", "adam", "--momentum", "0.9"), "leave momentum at 0"),
        ((*TRAIN, "--seeds", "4-0"), "must be a range or a list"),
        ((*TRAIN, "--sweep", "depth=1"), "must be FIELD=VALUE,... with a field of epochs"),
        ((*TRAIN, "--sweep", "lr=high"), "must be of type float"),
        (("train", "task2", "--data", "nowhere.zip"), "nowhere.zip"),
        pytest.param(
            (*TRAIN, "--device", "cuda"),
            "torch finds no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(call, args: tuple[str, ...], expected: str, mlflow_uri: str) -> None:
    ended = call(*args)
    assert ended.code == 2
    assert expected in ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert ended.out == ""
    from mlflow import MlflowClient

    assert MlflowClient(mlflow_uri).get_experiment_by_name("cnn-jobs") is None, "a mistake must leave no run"


@pytest.mark.parametrize("args", [(*TRAIN, "--epochs", "many"), (*TRAIN, "--device", "tpu"), (*TRAIN, "--epoch", "1")])
def test_an_option_that_click_refuses_is_exit_2(call, args: tuple[str, ...]) -> None:
    ended = call(*args)
    assert ended.code == 2
    assert "Error: " in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("fault", ["corrupt zip", "empty class", "mixed sizes", "digest"])
def test_bad_data_is_one_line_and_exit_2(call, fault: str, tmp_path: Path, small_file: Path) -> None:
    if fault == "corrupt zip":
        path = tmp_path / "broken.zip"
        path.write_bytes(b"PK\x03\x04 this is no zip")
        expected = "broken.zip"
    elif fault == "empty class":
        path = pictures(tmp_path / "pictures")
        for picture in (path / "train" / "dog").iterdir():
            picture.unlink()
        expected = "dog"
    elif fault == "mixed sizes":
        path = pictures(tmp_path / "pictures", sizes=((8, 8), (8, 9)))
        expected = "1.png"
    else:
        path = tmp_path / "changed.npz"
        content = dict(np.load(small_file))
        content["train_images"][0, 0, 0, 0] ^= 1
        np.savez(path, **content)
        expected = "expected"
    ended = call("train", "task2", "--data", path)
    assert ended.code == 2
    assert expected in ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1


def test_a_network_too_large_for_the_pictures_is_one_line(call, tmp_path: Path) -> None:
    write_prepared(striped_dataset(size=6), tmp_path / "tiny.npz", compressed=False)
    ended = call("train", "task3-arch1", "--data", tmp_path / "tiny.npz", "--batch-size", 8)
    assert ended.code == 2
    assert ended.err.startswith("error: kernel ")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("uri", "code", "expected"),
    [("localhost:5000", 2, "must look like http://host:5000"), ("http://host:port", 2, "must look like")],
)
def test_a_malformed_address_of_mlflow(call, uri: str, code: int, expected: str, small_file: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for command in (("train", "task2", "--data", small_file, "--batch-size", 8), ("runs",)):
        ended = call(*command)
        assert ended.code == code
        assert expected in ended.err
        assert ended.err.count("\n") == 1


@pytest.mark.parametrize(("status", "expected"), [(403, "--allowed-hosts"), (404, "check host, port and path")])
def test_a_server_that_refuses_is_one_line_and_exit_1(
    call, status: int, expected: str, small_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(status) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        ended = call("train", "task2", "--data", small_file, "--batch-size", 8)
    assert ended.code == 1
    assert f"answered {status}" in ended.err
    assert expected in ended.err
    assert ended.err.count("\n") == 1


def test_a_server_that_is_away_costs_nothing_but_a_replay(
    call, small_file: Path, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unused_address())
    ended = call("train", "task2", "--data", small_file, "--batch-size", 8, "--epochs", 1, "--ship-deadline", 0.5)
    assert ended.code == 75
    assert "does not answer; start it, or set MLFLOW_TRACKING_URI to one that runs; the training continues" in ended.err
    assert "the training is complete, but MLflow lacks a part of it" in ended.err
    (folder,) = (tmp_path / "state").iterdir()
    assert f"cnn-jobs replay {folder}" in ended.err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    sent = call("replay", folder)
    assert (sent.code, sent.err) == (0, "")
    assert "status FINISHED" in sent.out
    again = call("train", "task2", "--data", small_file, "--batch-size", 8, "--epochs", 1, "--run-key", folder.name)
    assert again.code == 0
    assert "finished before; nothing was trained" in again.out


def test_a_run_key_that_is_no_name_is_one_line_and_exit_2(call, small_file: Path) -> None:
    ended = call("train", "task2", "--data", small_file, "--run-key", "../else")
    assert ended.code == 2
    assert "--run-key is '../else', but must be" in ended.err
    assert ended.err.count("\n") == 1


def test_resume_must_without_a_run_is_one_line_and_exit_2(call, small_file: Path) -> None:
    ended = call("train", "task2", "--data", small_file, "--batch-size", 8, "--run-key", "nothing", "--resume", "must")
    assert ended.code == 2
    assert "run nothing has no checkpoint" in ended.err
    assert ended.err.count("\n") == 1


def test_an_unwritable_state_directory_is_one_line_and_exit_2(call, small_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = call("train", "task2", "--data", small_file, "--batch-size", 8, "--state-dir", tmp_path / "file" / "state")
    assert ended.code == 2
    assert "choose a directory" in ended.err
    assert ended.err.count("\n") == 1


@pytest.fixture
def result() -> RunResult:
    parts = [f"{part}_{kind}" for part in ("train", "val", "test") for kind in ("loss", "accuracy")]
    return RunResult(
        run_id="r",
        url="u",
        name="task3d-batchnorm-seed0",
        recipe=TASKS["task3d-batchnorm"].recipe,
        metrics={f"{model}/{part}": 0.5 for model in ("best", "last") for part in parts},
        steps=1,
        stopped_early=False,
        seconds=1,
    )


def printed(result: RunResult, options: RunOptions, capsys: pytest.CaptureFixture[str]) -> str:
    console.print_results(TASKS["task3d-batchnorm"], [result], options, synthetic=False)
    return capsys.readouterr().out


def test_the_command_that_compares_runs_hides_a_password_and_quotes(
    result: RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    options = RunOptions(tracking_uri="http://me:secret@host:5000", state_dir=Path(), experiment="my runs")
    out = printed(result, options, capsys)
    assert "secret" not in out
    assert "runs --experiment 'my runs'" in out


def test_the_table_fits_a_terminal_of_80_columns(
    result: RunResult, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LOG_WIDTH", 80)
    lines = printed(result, RunOptions(tracking_uri="http://host:5000", state_dir=Path()), capsys).splitlines()
    rows = [line.split() for line in lines if line.strip().startswith(result.name) and "0.5000" in line]
    assert rows == [[result.name, "best", *["0.5000"] * 6], [result.name, "last", *["0.5000"] * 6]]
