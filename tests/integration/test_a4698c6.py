"""Runs of cnn-jobs at commit a4698c6 (``a4698c6/make.py``) are continued, replayed and reported."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tarfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import forkserver
from tests.helpers.forkserver import Completed

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ARCHIVE = Path(__file__).parent / "a4698c6" / "runs.tar.xz"
STEPS, CHECKPOINT_STEP = 20, 10
RECIPE = ("--epochs", 2, "--batch-size", 5, "--validations-per-epoch", 1, "--early-stop-count", 0, "--threads", 1)


@dataclass(frozen=True)
class OldRuns:
    """The unpacked archive, and commands of the present version."""

    folder: Path

    def run(self, *arguments: object, state_dir: str = "state-new") -> Completed:
        environment = {
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'mlflow.db'}",
            "CNN_JOBS_STATE_DIR": str(self.folder / state_dir),
        }
        return forkserver.start(self.folder / "children", arguments, environment).wait()

    def resume(self, key: str, *more: object) -> Completed:
        command = ("train", "task2", "--data", self.folder / "data.npz", "--experiment", "old", *RECIPE)
        return self.run(*command, "--run-key", key, *more, state_dir=f"state-{key}")

    def query(self, text: str, *values: str) -> list[tuple[str, int, float]]:
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as database:
            return database.execute(text, values).fetchall()

    def run_id(self, key: str) -> str:
        found = self.query("SELECT run_uuid FROM tags WHERE key = 'cnn_jobs.run_key' AND value = ?", key)
        assert len(found) == 1
        return str(found[0][0])

    def rows(self, key: str) -> list[tuple[str, int, float]]:
        """Metric, step and value of every row that does not depend on a clock."""
        rows = self.query("SELECT key, step, value FROM metrics WHERE run_uuid = ?", self.run_id(key))
        return sorted(row for row in rows if row[0].startswith(("train/loss", "val/", "best/", "last/")))

    def losses(self, key: str) -> dict[int, float]:
        rows = [row for row in self.rows(key) if row[0] == "train/loss"]
        assert [step for _, step, _ in rows] == list(range(1, len(rows) + 1))
        return {step: value for _, step, value in rows}

    def status(self, key: str) -> str:
        return str(self.query("SELECT status FROM runs WHERE run_uuid = ?", self.run_id(key))[0][0])

    def tags(self, key: str) -> dict[str, str]:
        return {str(name): str(text) for name, text in self.query(
            "SELECT key, value FROM tags WHERE run_uuid = ?", self.run_id(key)
        )}  # fmt: skip


@pytest.fixture
def old(tmp_path: Path) -> OldRuns:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="tar")
    # MLflow stores absolute paths of the original folder.
    before = (tmp_path / "where").read_text()
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (before, str(tmp_path)))
    return OldRuns(tmp_path)


def test_killed_run_continues_from_its_state_directory(old: OldRuns) -> None:
    before = old.rows("killed")
    assert len([row for row in before if row[0] == "train/loss"]) == 15
    done = old.resume("killed", "--resume", "must")
    assert done.code == 0, done.stderr
    assert old.status("killed") == "FINISHED"
    assert set(before) < set(old.rows("killed"))
    assert old.losses("killed") == pytest.approx(old.losses("finished"), rel=1e-4)
    assert len(old.losses("killed")) == STEPS
    tags = old.tags("killed")
    assert tags["cnn_jobs.attempt"] == "2"
    # Its convolutions added the bias behind the pooling.
    assert "convolutions fast, of an earlier version -> fast" in tags["cnn_jobs.continued_elsewhere"]
    costs = json.loads(tags["cnn_jobs.ledger"])
    assert [each["steps"] for each in costs["attempts"]] == [15, STEPS - CHECKPOINT_STEP]


def test_run_without_its_state_directory_continues_from_its_artifacts(old: OldRuns) -> None:
    assert (old.status("interrupted"), old.tags("interrupted")["cnn_jobs.state"]) == ("KILLED", "interrupted")
    done = old.resume("interrupted", "--resume", "must")
    assert done.code == 0, done.stderr
    assert old.status("interrupted") == "FINISHED"
    assert old.losses("interrupted") == pytest.approx(old.losses("finished"), rel=1e-4)
    costs = json.loads(old.tags("interrupted")["cnn_jobs.ledger"])
    assert [each["steps"] for each in costs["attempts"]] == [15, 5]  # SIGTERM saved a checkpoint


def test_unsent_run_is_replayed(old: OldRuns) -> None:
    done = old.run("replay", old.folder / "state-unsent" / "unsent")
    assert done.code == 0, done.stderr
    assert old.status("unsent") == "FINISHED"
    assert old.rows("unsent") == old.rows("finished")
    artifacts = old.folder / "mlruns" / "1" / old.run_id("unsent") / "artifacts"
    there = {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*") if path.is_file()}
    assert {"checkpoints/last.pt", "checkpoints/best.pt", "model/MLmodel", "history.csv", "lineage.json"} <= there


def test_command_of_an_unsent_run_only_uploads(old: OldRuns) -> None:
    done = old.resume("unsent")
    assert done.code == 0, done.stderr
    assert old.status("unsent") == "FINISHED"
    assert old.rows("unsent") == old.rows("finished")


def test_finished_run_is_only_read_back(old: OldRuns) -> None:
    before = old.rows("finished")
    done = old.resume("finished")
    assert done.code == 0, done.stderr
    assert "nothing was trained" in done.stdout
    assert old.rows("finished") == before


def test_key_of_another_recipe_is_refused(old: OldRuns) -> None:
    done = old.resume("killed", "--lr", "0.01")
    assert done.code == 2
    assert "recipe_hash" in done.stderr


def test_report_includes_the_finished_run(old: OldRuns) -> None:
    done = old.run("report", "--experiment", "old", "--out", old.folder / "report", "--no-log")
    assert done.code == 0, done.stderr
    content = json.loads((old.folder / "report" / "report.json").read_text())
    assert [group["task"] for data in content["data"] for group in data["groups"]] == ["task2"]
    assert {each["name"] for each in content["set_aside"]} == {"task2-seed0"}
    accuracy = {key: value for key, _, value in old.rows("finished")}["last/test_accuracy"]
    shown = (old.folder / "report" / "report.md").read_text()
    assert f"{100 * accuracy:.2f}" in shown
    listed = old.run("runs", "--experiment", "old")
    assert listed.code == 0, listed.stderr
    assert listed.stdout.count("task2-seed0") == 3


def test_reproduction_is_refused_with_the_commit_to_install(old: OldRuns) -> None:
    shutil.copy(old.folder / "data.npz", old.folder / "moved.npz")
    done = old.run("reproduce", old.run_id("finished"), "--data", old.folder / "moved.npz")
    assert done.code == 2, done.stderr
    assert "its convolutions were fast, of an earlier version, here they are fast" in done.stderr
    assert "install the code of commit a4698c6" in done.stderr
