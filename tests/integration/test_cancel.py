"""The real command cancels a run while a real process trains it; only the Kubernetes API is a fake."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cnn_jobs.tracking.cancellation import JobRuns
from tests.helpers.calls import call
from tests.helpers.forkserver import Child
from tests.helpers.job_files import DOCUMENTS
from tests.helpers.kubernetes_api import FakeApi, fake_api
from tests.helpers.survival import Lab
from tests.helpers.tracking import client, rows
from tests.helpers.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]


class Node:
    """A node with one pod of a Job, which is a real process. Deleting the Job sends it a signal."""

    def __init__(self, lab: Lab, api: FakeApi, *, number: int) -> None:
        self.api, self.signal, self.lab = api, number, lab
        self.job = api.add_job(DOCUMENTS["task2-job.yaml"])
        self.key: str = self.job["metadata"]["uid"]
        self.pod = api.run_pod(self.job)
        self.child = self.start("--epochs", 5000)
        self.completed: Any = None
        api.on_delete = self.stop

    def start(self, *more: object) -> Child:
        return self.lab.start("task2", self.key, *more)

    def stop(self, deleted: dict[str, Any]) -> None:
        os.kill(self.child.pid, self.signal)
        self.completed = self.child.wait()
        self.api.remove(deleted)

    def run(self) -> Any:
        """Its run in MLflow, once it has a validation and a checkpoint."""
        run = self.lab.run_of("task2", self.key)
        if run is None or "val/loss" not in run.data.metrics:
            return None
        return run if client(self.lab.uri).list_artifacts(run.info.run_id, "checkpoints") else None


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGTERM, "cancelled by me; stopped by SIGTERM after step"), (signal.SIGKILL, "cancelled by me")],
)
def test_cancelled_training_is_killed_and_not_resumed(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, reason: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", lab.uri)
    monkeypatch.setattr("getpass.getuser", lambda: "me")
    with fake_api() as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path / "kubeconfig")))
        node = Node(lab, api, number=number)
        until(node.run)
        done = call(monkeypatch, "cancel", "task2")
    assert done.code == 0, done.stderr
    assert node.completed.code == (75 if number == signal.SIGTERM else -number), node.completed.stderr
    run = node.run()
    assert (run.info.status, run.data.tags["cnn_jobs.state"]) == ("KILLED", "cancelled")
    assert run.data.tags["cnn_jobs.reason"].startswith(reason)
    assert f"({node.key}): KILLED, cancelled; its checkpoint is in MLflow" in done.stdout
    # The next pod, with and without its disk; then a user with --resume must.
    for lost in (False, True):
        if lost:
            lab.lose_state(node.key)
        again = lab.train("task2", node.key, "--epochs", 5000)
        assert again.code == 2, again.stderr
        assert f"error: run {node.key} was cancelled; use another --run-key" in again.stderr
        assert node.run().data.tags == run.data.tags
        assert node.run().info.status == "KILLED"
    before = len(rows(lab.uri, run.info.run_id))
    child = node.start("--epochs", 5000, "--resume", "must")
    until(lambda: len(rows(lab.uri, run.info.run_id)) > before)  # without progress the exit code is 1
    assert (node.run().info.status, node.run().data.tags["cnn_jobs.state"]) == ("RUNNING", "running")
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait().code == 75
    assert node.run().data.tags["cnn_jobs.state"] == "interrupted"


def test_cancelled_series_is_not_resumed(lab: Lab) -> None:
    key = "cancelled-series"
    hook = {"hook": "signal_at_step", "hook_args": [5, "SIGTERM"]}
    assert lab.train("task2", key, "--seeds", "0-2", **hook).code == 75
    marked = JobRuns(lab.uri, key).mark_cancelled("cancelled by me")
    assert {run.tags["cnn_jobs.run_key"] for run in marked} == {key, f"{key}-seed0"}
    again = lab.train("task2", key, "--seeds", "0-2")
    assert again.code == 2, again.stderr
    assert [run.state for run in JobRuns(lab.uri, key).runs()] == ["cancelled", "cancelled"]
    single = lab.train("task2", key, "--seeds", "0", "--resume", "must")
    assert single.code == 2, single.stderr  # the key is that of a series
    forced = lab.train("task2", key, "--seeds", "0-1", "--resume", "must")
    assert forced.code == 2, forced.stderr  # seed 1 has no checkpoint
    states = {run.tags["cnn_jobs.run_key"]: (run.status, run.state) for run in JobRuns(lab.uri, key).runs()}
    assert states[f"{key}-seed0"] == ("FINISHED", "finished")
