"""The main job as a user runs it: a real server, the real command in a new process, a real browser."""

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

from cnn_jobs.local_server.server import Server, start_server, stop_server
from tests.helpers.servers import unused_url
from tests.helpers.tracking import fetch, only_run, rows, runs_in
from tests.helpers.waiting import until

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


def wait_for_first_step(uri: str, experiment: str, process: subprocess.Popen[str]) -> None:
    def has_step() -> bool:
        assert process.poll() is None
        return any("train/loss" in run.data.metrics for run in runs_in(uri, experiment))

    until(has_step, 120)


def test_run_is_complete_on_a_server(server: Server, tmp_path: Path) -> None:
    done = cnn_jobs(
        server.url, tmp_path, "train", "task2", "--data", "shapes", "--epochs", 2, "--experiment", "complete"
    )
    assert done.returncode == 0, done.stderr
    run = only_run(server.url, "complete")
    assert run.info.status == "FINISHED"
    assert f"{server.url}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" in done.stdout
    assert "synthetic" in done.stdout
    assert run.data.tags["cnn_jobs.synthetic_data"] == "true"
    assert [step for step, _ in rows(server.url, run.info.run_id)] == list(range(1, 169))
    folder = fetch(server.url, run.info.run_id, tmp_path / "artifacts")
    (state,) = (tmp_path / "state").iterdir()
    own = {f"checkpoints/{name}.pt": state / "checkpoints" / f"{name}.pt" for name in ("best", "last")}
    artifacts = state / "artifacts"
    own |= {path.relative_to(artifacts).as_posix(): path for path in artifacts.rglob("*") if path.is_file()}
    assert {"history.csv", "confusion.csv", "network.md", "lineage.json", "mistakes.png", "model/MLmodel"} <= own.keys()
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == own.keys()
    for name, path in own.items():
        assert (folder / name).read_bytes() == path.read_bytes(), name
    assert not [path for path in (state / "outbox").rglob("*") if path.is_file()], "uploaded, but still staged"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_run_as_killed(server: Server, tmp_path: Path, sent: signal.Signals) -> None:
    experiment = f"stopped-{sent.name}"
    args = ["train", "task2", "--data", "shapes", "--epochs", "1000", "--early-stop-count", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cnn_jobs", *args, "--experiment", experiment],
        env=environment(server.url, tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_first_step(server.url, experiment, process)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: stopped by {sent.name} after step ")
    assert "Continue it with:" in errors
    run = only_run(server.url, experiment)
    assert run.info.status == "KILLED"
    assert run.data.tags["cnn_jobs.state"] == "interrupted"


def test_nothing_is_lost_while_the_server_is_away(tmp_path: Path) -> None:
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
        wait_for_first_step(first.url, "cnn-jobs", process)
        stop_server(folder)
        time.sleep(3)
        again = start_server(folder, first.port)
        assert again.url == first.url
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        run = only_run(first.url, "cnn-jobs")
        assert run.info.status == "FINISHED"
        assert [step for step, _ in rows(first.url, run.info.run_id)] == list(range(1, 3 * 84 + 1))
    finally:
        stop_server(folder)


def test_run_without_a_server_prints_how_to_send_the_rest(server: Server, tmp_path: Path, small_file: Path) -> None:
    args = ("train", "task2", "--data", small_file, "--batch-size", 8, "--epochs", 1, "--experiment", "away")
    done = cnn_jobs(unused_url(), tmp_path, *args, "--ship-deadline", 1)
    assert done.returncode == 75
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "the training is complete, but MLflow lacks a part of it" in line
    (state,) = (tmp_path / "state").iterdir()
    assert f"cnn-jobs replay {state}" in done.stderr
    sent = cnn_jobs(server.url, tmp_path, "replay", state)
    assert sent.returncode == 0, sent.stderr
    run = only_run(server.url, "away")
    assert run.info.status == "FINISHED"


def test_two_processes_train_the_same_bits(server: Server, tmp_path: Path, small_file: Path) -> None:
    histories = []
    for name in ("first", "second"):
        folder = tmp_path / name
        args = ("train", "task3-arch2", "--data", small_file, "--epochs", 2, "--batch-size", 8, "--seed", 5)
        done = cnn_jobs(server.url, folder, *args)
        assert done.returncode == 0, done.stderr
        (state,) = (folder / "state").iterdir()
        histories.append((state / "artifacts" / "history.csv").read_bytes())
    assert histories[0] == histories[1]
    assert histories[0].count(b"\n") > 5


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_run_is_shown_in_the_mlflow_ui(server: Server, tmp_path: Path, small_file: Path) -> None:
    done = cnn_jobs(
        server.url, tmp_path, "train", "task2", "--data", small_file, "--epochs", 1, "--batch-size", 8,
        "--experiment", "shown", "--run-name", "a-run-to-see",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = only_run(server.url, "shown")
    page = browse(f"{server.url}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}", tmp_path)
    assert "a-run-to-see" in page
    assert "last/test_accuracy" in page
    assert "Baseline: three 5x5 convolutions, SGD" in page


def browse(url: str, tmp_path: Path) -> str:
    """The page in headless Chromium, after its scripts have run."""
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--window-size=1400,1800",
        f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=20000", "--dump-dom",
    ]  # fmt: skip
    shown = subprocess.run(["chromium", *flags, url], capture_output=True, text=True, timeout=120)
    return shown.stdout
