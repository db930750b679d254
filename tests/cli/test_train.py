"""``cnn-jobs train``, and the ``runs`` that it leaves: exit codes, and one line for each mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_jobs.cli import console
from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.runs.setup import RunOptions, RunResult
from cnn_jobs.tasks import TASKS
from tests.helpers import runs
from tests.helpers.calls import Called
from tests.helpers.calls import call as call_with
from tests.helpers.datasets import striped_dataset
from tests.helpers.servers import answering, unused_url
from tests.helpers.tracking import client, fetch, only_run, runs_in

# MLflow and torch.export warn when a model is saved.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("small_file")]
Call = Callable[..., Called]
# The test runs in the folder of ``small_file``.
TRAIN = ("train", "task2", "--data", "small.npz", "--batch-size", 8)
SHORT = (*TRAIN, "--epochs", 1, "--threads", 1)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, mlflow_uri: str) -> Call:
    """Calls the command line with a new MLflow database."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    return lambda *arguments: call_with(monkeypatch, *arguments)


@pytest.fixture
def _cheap_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    runs.cheap_outputs(monkeypatch)


def test_finished_run_prints_its_results(call: Call, mlflow_uri: str) -> None:
    done = call(*SHORT)
    assert done.code == 0, done.stderr
    assert "best" in done.stdout
    assert "last" in done.stdout
    assert mlflow_uri in done.stdout
    assert f"MLFLOW_TRACKING_URI={mlflow_uri} cnn-jobs runs --experiment cnn-jobs" in done.stdout
    assert "val accuracy" in done.stderr

    listed = call("runs", "--experiment", "cnn-jobs")
    assert listed.code == 0
    assert "task2-seed0" in listed.stdout
    assert "finished" in listed.stdout
    assert "1 run in experiment" in listed.stdout


@pytest.mark.usefixtures("_cheap_outputs")
def test_command_line_overrides_the_environment(
    call: Call, monkeypatch: pytest.MonkeyPatch, mlflow_uri: str, small_file: Path
) -> None:
    monkeypatch.setenv("CNN_JOBS_EPOCHS", "2")
    monkeypatch.setenv("CNN_JOBS_BATCH_SIZE", "8")
    monkeypatch.setenv("CNN_JOBS_DATA", str(small_file))
    assert call("train", "task2", "--epochs", 1, "--threads", 1).code == 0
    params = only_run(mlflow_uri).data.params
    assert (params["epochs"], params["batch_size"]) == ("1", "8")


@pytest.mark.usefixtures("_cheap_outputs")
def test_name_of_a_run_is_only_text(call: Call, tmp_path: Path) -> None:
    """Neither markup of rich nor sequences that control a terminal."""
    name = "lr[/b]=[red]1\x1b]0;title\x07 \u202egnp :smile:"
    done = call(*SHORT, "--run-name", name)
    assert done.code == 0, done.stderr
    shown = "lr[/b]=[red]1]0;title gnp :smile:"
    assert shown in done.stdout
    listed = call("runs", "--experiment", "cnn-jobs")
    assert (listed.code, listed.stderr) == (0, "")
    assert "lr[/b]=[red]1]0;title" in listed.stdout
    report = call("report", "--out", tmp_path / "report", "--no-log")
    assert report.code == 0, report.stderr
    texts = [done.stdout, listed.stdout, report.stdout]
    texts += [path.read_text() for path in (tmp_path / "report").glob("*.md")]
    assert [text for text in texts if "\x1b" in text or "\u202e" in text] == []


@pytest.mark.usefixtures("_cheap_outputs")
def test_no_password_of_an_argument_is_recorded(call: Call, mlflow_uri: str, tmp_path: Path) -> None:
    url = "http://ann:hun/t@er2@127.0.0.1:9"
    assert call(*SHORT, "--pushgateway", url, "--state-dir", tmp_path / "state").code == 0
    run = only_run(mlflow_uri)
    artifacts = fetch(mlflow_uri, run.info.run_id, tmp_path / "artifacts")
    assert "http://ann:***@127.0.0.1:9" in json.loads((artifacts / "lineage.json").read_text())["command"]
    files = [path for folder in (artifacts, tmp_path / "state") for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if b"er2" in path.read_bytes()] == []
    assert "er2" not in str(run.to_dictionary())


@pytest.mark.usefixtures("_cheap_outputs")
def test_torchs_own_convolutions(call: Call, mlflow_uri: str, tmp_path: Path) -> None:
    assert call(*SHORT, "--no-fast-convolutions").code == 0
    artifacts = fetch(mlflow_uri, only_run(mlflow_uri).info.run_id, tmp_path / "artifacts")
    assert json.loads((artifacts / "lineage.json").read_text())["convolutions"] == "torch's own"


@pytest.mark.usefixtures("_cheap_outputs")
def test_point_of_a_series_is_a_single_run(call: Call, mlflow_uri: str) -> None:
    assert call(*SHORT, "--seeds", "0-3", "--point", 2, "--run-key", "mine").code == 0
    run = only_run(mlflow_uri)
    assert (run.info.run_name, run.data.tags["cnn_jobs.run_key"]) == ("task2-seed2", "mine")
    assert "mlflow.parentRunId" not in run.data.tags


@pytest.mark.usefixtures("_cheap_outputs")
def test_grid_of_runs_has_one_parent(call: Call, mlflow_uri: str) -> None:
    done = call(*SHORT, "--seeds", "0-1", "--sweep", "lr=0.01,0.02")
    assert done.code == 0, done.stderr
    found = runs_in(mlflow_uri)
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
    assert "4 runs" in call("runs").stdout


@pytest.mark.usefixtures("_cheap_outputs")
def test_diverged_run_does_not_stop_the_others(call: Call, mlflow_uri: str) -> None:
    done = call(*TRAIN, "--epochs", 2, "--threads", 1, "--sweep", "lr=1e12,0.01")
    assert done.code == 2
    assert "lr1000000000000.0: the training loss is" in done.stderr
    status = {run.info.run_name: run.info.status for run in runs_in(mlflow_uri)}
    assert status == {"task2-lr1000000000000.0": "FAILED", "task2-lr0.01": "FINISHED", "task2-2-runs": "FAILED"}


@pytest.mark.usefixtures("_cheap_outputs")
def test_run_without_mlflow_can_be_replayed(
    call: Call, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unused_url())
    done = call(*SHORT, "--ship-deadline", 0.1)
    assert done.code == 75
    assert (
        "does not answer; start it, or set MLFLOW_TRACKING_URI to one that runs; the training continues" in done.stderr
    )
    assert "the training is complete, but MLflow lacks a part of it" in done.stderr
    (folder,) = (tmp_path / "state").iterdir()
    assert f"cnn-jobs replay {folder}" in done.stderr
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    sent = call("replay", folder)
    assert (sent.code, sent.stderr) == (0, "")
    assert "status FINISHED" in sent.stdout
    again = call(*SHORT, "--run-key", folder.name)
    assert again.code == 0
    assert "finished before; nothing was trained" in again.stdout


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "task9"), "unknown task 'task9'; the tasks are task2, task3-arch1"),
        ((*TRAIN, "--epochs", "0"), "epochs is 0, but must be at least 1"),
        ((*TRAIN, "--lr", "-1"), "lr is -1.0, but must be a finite number above 0"),
        ((*TRAIN, "--lr", "nan"), "lr is nan, but must be a finite number above 0"),
        ((*TRAIN, "--batch-size", "100000"), "batch_size 100000 is larger than the 36 training images"),
        ((*TRAIN, "--validation-fraction", "0.00001"), "leaves 0 for validation"),
        ((*TRAIN, "--validations-per-epoch", "99999"), "is more than the"),
        ((*TRAIN, "--optimizer", "adam", "--momentum", "0.9"), "leave momentum at 0"),
        ((*TRAIN, "--seeds", "4-0"), "must be a range or a list"),
        ((*TRAIN, "--sweep", "depth=1"), "must be FIELD=VALUE,... with a field of epochs"),
        ((*TRAIN, "--sweep", "lr=high"), "must be of type float"),
        ((*TRAIN, "--run-key", "../else"), "--run-key is '../else', but must be"),
        ((*TRAIN, "--run-key", "none", "--resume", "must"), "run none has no checkpoint"),
        ((*TRAIN, "--state-dir", "small.npz/state"), "choose a directory"),
        (("train", "task2", "--data", "nowhere.zip"), "nowhere.zip"),
        pytest.param(
            (*TRAIN, "--device", "cuda"),
            "torch finds no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_mistake_is_one_line_and_exit_2(
    call: Call, arguments: tuple[object, ...], message: str, mlflow_uri: str
) -> None:
    done = call(*arguments)
    assert done.code == 2
    assert done.error.startswith("error: ")
    assert message in done.error
    assert done.stdout == ""
    assert client(mlflow_uri).get_experiment_by_name("cnn-jobs") is None, "a mistake must leave no run"


@pytest.mark.parametrize("option", [("--epochs", "many"), ("--device", "tpu"), ("--epoch", "1")])
def test_invalid_option_is_exit_2(call: Call, option: tuple[str, str]) -> None:
    done = call(*TRAIN, *option)
    assert done.code == 2
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


def write_images(folder: Path, *sizes: tuple[int, int]) -> Path:
    """An ImageFolder with an image of each size in each class."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for number, size in enumerate(sizes):
                Image.fromarray(np.zeros((*size, 3), np.uint8)).save(folder / split / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("fault", ["corrupt zip", "empty class", "mixed sizes", "digest", "small images"])
def test_bad_data_is_one_line_and_exit_2(call: Call, fault: str, tmp_path: Path, small_file: Path) -> None:
    task = "task2"
    if fault == "corrupt zip":
        path, message = tmp_path / "broken.zip", "broken.zip"
        path.write_bytes(b"PK\x03\x04 not a zip")
    elif fault == "empty class":
        path, message = write_images(tmp_path / "images", (8, 8)), "dog"
        (path / "train" / "dog" / "0.png").unlink()
    elif fault == "mixed sizes":
        path, message = write_images(tmp_path / "images", (8, 8), (8, 9)), "1.png"
    elif fault == "digest":
        path, message = tmp_path / "changed.npz", "expected"
        content = dict(np.load(small_file))
        content["train_images"][0, 0, 0, 0] ^= 1
        np.savez(path, **content)
    else:
        path, message, task = tmp_path / "tiny.npz", "error: kernel ", "task3-arch1"
        write_prepared(striped_dataset(size=6), path, compressed=False)
    done = call("train", task, "--data", path, "--batch-size", 8)
    assert done.code == 2
    assert done.error.startswith("error: ")
    assert message in done.error


@pytest.mark.parametrize("command", [TRAIN, ("runs",)])
@pytest.mark.parametrize("uri", ["localhost:5000", "http://host:port"])
def test_malformed_address_of_mlflow(
    call: Call, command: tuple[object, ...], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    done = call(*command)
    assert done.code == 2
    assert "must look like http://host:5000" in done.error


@pytest.mark.parametrize(("status", "advice"), [(403, "--allowed-hosts"), (404, "check host, port and path")])
def test_refusing_server_is_one_line_and_exit_1(
    call: Call, status: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(status) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        done = call(*TRAIN)
    assert done.code == 1
    assert f"answered {status}" in done.error
    assert advice in done.error


# -- results -----------------------------------------------------------------------------------------------------------


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


def test_printed_command_hides_passwords_and_is_quoted(result: RunResult, capsys: pytest.CaptureFixture[str]) -> None:
    options = RunOptions(tracking_uri="http://me:secret@host:5000", state_dir=Path(), experiment="my runs")
    out = printed(result, options, capsys)
    assert "secret" not in out
    assert "runs --experiment 'my runs'" in out


def test_table_fits_80_columns(
    result: RunResult, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LOG_WIDTH", 80)
    lines = printed(result, RunOptions(tracking_uri="http://host:5000", state_dir=Path()), capsys).splitlines()
    rows = [line.split() for line in lines if line.strip().startswith(result.name) and "0.5000" in line]
    assert rows == [[result.name, "best", *["0.5000"] * 6], [result.name, "last", *["0.5000"] * 6]]
