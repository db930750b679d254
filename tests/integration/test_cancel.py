"""The real command cancels a run while a real process trains it; only the cluster's API is a fake."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.calls import call
from tests.helpers.forkserver import Child
from tests.helpers.job_files import DOCUMENTS
from tests.helpers.kubernetes_api import FakeApi, fake_api
from tests.helpers.survival import Lab
from tests.helpers.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]


class Node:
    """One pod of a Job as a real process; the end of the Job is a SIGTERM to it."""

    def __init__(self, lab: Lab, api: FakeApi, *, number: int) -> None:
        self.api, self.signal, self.lab = api, number, lab
        self.job = api.add_job(DOCUMENTS["task2-job.yaml"])
        self.key: str = self.job["metadata"]["uid"]
        self.pod = api.run_pod(self.job)
        self.child = self.start("--epochs", 5000)
        self.ended: Any = None
        api.on_delete = self.stop

    def start(self, *more: object) -> Child:
        arguments = self.lab.arguments("task2", *more)
        environment = self.lab.environment(self.key)
        return self.lab.server.start(arguments, environment, hook="tests.helpers.hooks:cheap_outputs")

    def stop(self, deleted: dict[str, Any]) -> None:
        os.kill(self.child.pid, self.signal)
        self.ended = self.child.wait()
        self.api.remove(deleted)

    def run(self) -> Any:
        """Its run in MLflow, once it has trained a while and a checkpoint has arrived."""
        from mlflow import MlflowClient

        client = MlflowClient(self.lab.uri)
        experiment = client.get_experiment_by_name("task2")
        if experiment is None:
            return None
        found = client.search_runs([experiment.experiment_id], f"tags.`cnn_jobs.run_key` = '{self.key}'")
        if not found or "val/loss" not in found[0].data.metrics:
            return None
        return found[0] if client.list_artifacts(found[0].info.run_id, "checkpoints") else None


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGTERM, "cancelled by me; stopped by SIGTERM after step"), (signal.SIGKILL, "cancelled by me")],
)
def test_a_training_that_is_cancelled_ends_so_and_no_attempt_follows(
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
    assert node.ended.code == (75 if number == signal.SIGTERM else -number), node.ended.stderr
    run = node.run()
    assert (run.info.status, run.data.tags["cnn_jobs.state"]) == ("KILLED", "cancelled")
    assert run.data.tags["cnn_jobs.reason"].startswith(reason)
    assert f"({node.key}): KILLED, cancelled; its checkpoint is in MLflow" in done.stdout
    # A next pod, if there were one, and then a person with --resume must.
    for lost in (False, True):
        if lost:
            lab.lose_state(node.key)
        again = lab.train("task2", node.key, "--epochs", 5000)
        assert again.code == 2, again.stderr
        assert f"error: run {node.key} was cancelled; use another --run-key" in again.stderr
        assert node.run().data.tags == run.data.tags
        assert node.run().info.status == "KILLED"
    child = node.start("--epochs", 5000, "--resume", "must")
    until(lambda: node.run().info.status == "RUNNING")
    assert node.run().data.tags["cnn_jobs.state"] == "running"
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait().code == 75
    assert node.run().data.tags["cnn_jobs.state"] == "interrupted"


def test_a_cancelled_series_is_not_resumed(lab: Lab) -> None:
    from cnn_jobs.tracking.cancellation import JobRuns

    key = "series-that-is-cancelled"
    hook = {"hook": "kill_at_step", "hook_args": [5, "SIGTERM"]}
    assert lab.train("task2", key, "--seeds", "0-2", **hook).code == 75
    marked = JobRuns(lab.uri, key).mark_cancelled("cancelled by me")
    assert {run.tags["cnn_jobs.run_key"] for run in marked} == {key, f"{key}-seed0"}
    again = lab.train("task2", key, "--seeds", "0-2")
    assert again.code == 2, again.stderr
    assert [run.state for run in JobRuns(lab.uri, key).runs()] == ["cancelled", "cancelled"]
    meant = lab.train("task2", key, "--seeds", "0", "--resume", "must")  # the one that has a checkpoint
    assert meant.code == 2, meant.stderr  # the key is a series', not one run's
    meant = lab.train("task2", key, "--seeds", "0-1", "--resume", "must")
    assert meant.code == 2, meant.stderr  # seed 1 never began
    states = {run.tags["cnn_jobs.run_key"]: (run.status, run.state) for run in JobRuns(lab.uri, key).runs()}
    assert states[f"{key}-seed0"] == ("FINISHED", "finished")
