"""The main job as a user runs it: a real server, the real command in a process of its own, a real browser."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.local_server.server import Server, start_server, stop_server
from tests.helpers.tracking import unused_address

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    yield start_server(folder)
    stop_server(folder)


def environment(uri: str, tmp_path: Path) -> dict[str, str]:
    own = {"MLFLOW_TRACKING_URI": uri, "CNN_JOBS_STATE_DIR": str(tmp_path / "state"), "COLUMNS": "120"}
    return {**os.environ, **own}


def cnn_jobs(uri: str, tmp_path: Path, *args: object, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cnn_jobs", *map(str, args)],
        env=environment(uri, tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        **settings,
    )


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def runs(uri: str, experiment: str) -> list[Any]:
    found = client(uri).get_experiment_by_name(experiment)
    return list(client(uri).search_runs([found.experiment_id])) if found else []


@pytest.fixture
def small_file(tmp_path: Path, tiny_dataset: Dataset) -> Path:
    path = tmp_path / "small.npz"
    write_prepared(tiny_dataset, path, compressed=False)
    return path


def test_a_run_is_whole_on_a_server(server: Server, tmp_path: Path) -> None:
    ended = cnn_jobs(server.url, tmp_path, "train", "task2", "--data", "shapes", "--epochs", 2, "--experiment", "whole")
    assert ended.returncode == 0, ended.stderr
    (run,) = runs(server.url, "whole")
    assert run.info.status == "FINISHED"
    assert f"{server.url}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" in ended.stdout
    assert "synthetic" in ended.stdout
    assert run.data.tags["cnn_jobs.synthetic_data"] == "true"
    history = client(server.url).get_metric_history(run.info.run_id, "train/loss")
    assert sorted(point.step for point in history) == list(range(1, 169))
    folder = tmp_path / "artifacts"
    folder.mkdir()
    client(server.url).download_artifacts(run.info.run_id, "", str(folder))
    (state,) = (tmp_path / "state").iterdir()
    own = {f"checkpoints/{name}.pt": state / "checkpoints" / f"{name}.pt" for name in ("best", "last")}
    artifacts = state / "artifacts"
    own |= {path.relative_to(artifacts).as_posix(): path for path in artifacts.rglob("*") if path.is_file()}
    assert {"history.csv", "confusion.csv", "network.md", "lineage.json", "mistakes.png", "model/MLmodel"} <= own.keys()
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == own.keys()
    for name, path in own.items():
        assert (folder / name).read_bytes() == path.read_bytes(), name
    assert not [path for path in (state / "outbox").rglob("*") if path.is_file()], "delivered, and still staged"


@pytest.mark.parametrize("wanted", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_as_killed(server: Server, tmp_path: Path, wanted: signal.Signals) -> None:
    experiment = f"stopped-{wanted.name}"
    args = ["train", "task2", "--data", "shapes", "--epochs", "1000", "--early-stop-count", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cnn_jobs", *args, "--experiment", experiment],
        env=environment(server.url, tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not any("train/loss" in run.data.metrics for run in runs(server.url, experiment)):
        assert time.monotonic() < deadline, "no step in two minutes"
        assert process.poll() is None
        time.sleep(0.3)
    process.send_signal(wanted)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: stopped by {wanted.name} after step ")
    assert "Continue it with:" in errors
    (run,) = runs(server.url, experiment)
    assert run.info.status == "KILLED"
    assert run.data.tags["cnn_jobs.state"] == "interrupted"


def test_a_server_that_goes_away_for_a_while_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    first = start_server(folder)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "cnn_jobs", "train", "task2", "--data", "shapes", "--epochs", "3"],
            env=environment(first.url, tmp_path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 120
        while not any("train/loss" in run.data.metrics for run in runs(first.url, "cnn-jobs")):
            assert time.monotonic() < deadline, "no step in two minutes"
            time.sleep(0.3)
        stop_server(folder)
        time.sleep(3)
        again = start_server(folder, first.port)
        assert again.url == first.url
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        (run,) = runs(first.url, "cnn-jobs")
        assert run.info.status == "FINISHED"
        points = client(first.url).get_metric_history(run.info.run_id, "train/loss")
        assert sorted(point.step for point in points) == list(range(1, 3 * 84 + 1))
    finally:
        stop_server(folder)


def test_without_a_server_it_trains_and_says_how_to_send_the_rest(
    server: Server, tmp_path: Path, small_file: Path
) -> None:
    args = ("train", "task2", "--data", small_file, "--batch-size", 8, "--epochs", 1, "--experiment", "away")
    ended = cnn_jobs(unused_address(), tmp_path, *args, "--ship-deadline", 1)
    assert ended.returncode == 75
    assert "Traceback" not in ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "the training is complete, but MLflow lacks a part of it" in line
    (state,) = (tmp_path / "state").iterdir()
    assert f"cnn-jobs replay {state}" in ended.stderr
    sent = cnn_jobs(server.url, tmp_path, "replay", state)
    assert sent.returncode == 0, sent.stderr
    (run,) = runs(server.url, "away")
    assert run.info.status == "FINISHED"


def test_two_processes_train_the_same_bytes(server: Server, tmp_path: Path, small_file: Path) -> None:
    histories = []
    for name in ("first", "second"):
        folder = tmp_path / name
        args = ("train", "task3-arch2", "--data", small_file, "--epochs", 2, "--batch-size", 8, "--seed", 5)
        ended = cnn_jobs(server.url, folder, *args)
        assert ended.returncode == 0, ended.stderr
        (state,) = (folder / "state").iterdir()
        histories.append((state / "artifacts" / "history.csv").read_bytes())
    assert histories[0] == histories[1]
    assert histories[0].count(b"\n") > 5


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_run_shows_in_the_mlflow_ui(server: Server, tmp_path: Path, small_file: Path) -> None:
    ended = cnn_jobs(
        server.url, tmp_path, "train", "task2", "--data", small_file, "--epochs", 1, "--batch-size", 8,
        "--experiment", "shown", "--run-name", "a-run-to-see",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (run,) = runs(server.url, "shown")
    page = browse(f"{server.url}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}", tmp_path)
    assert "a-run-to-see" in page
    assert "last/test_accuracy" in page
    assert "Baseline: three 5x5 convolutions, SGD" in page, "the run's description must be on its page"


def browse(url: str, tmp_path: Path) -> str:
    """The page's text after its scripts have run, in headless Chromium."""
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--window-size=1400,1800",
        f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=20000", "--dump-dom",
    ]  # fmt: skip
    shown = subprocess.run(["chromium", *flags, url], capture_output=True, text=True, timeout=120)
    return shown.stdout
