"""Calls to MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cnn_jobs.errors import ArtifactLocationError, TrackingError, TrackingUriError
from cnn_jobs.tracking.client import TrackingClient
from cnn_jobs.tracking.records import Metric
from tests.helpers.servers import JSON, Reply, answering, speaking
from tests.helpers.tracking import MLFLOW_WARNING


@pytest.mark.filterwarnings(MLFLOW_WARNING)
def test_missing_database_driver_is_a_one_line_error() -> None:
    with pytest.raises(TrackingUriError, match="its driver is missing") as caught:
        TrackingClient("mssql+pymssql://user:secret@127.0.0.1/base").has_experiment("any")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_calls_wait_for_their_answer_whatever_the_environment_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answering(413) as url:
        client = TrackingClient(url)
        with pytest.raises(TrackingError, match="413"):
            client.log_metrics("run", [Metric("train/loss", 1.0, 1, 0)])
        with pytest.raises(TrackingError, match="413"):
            client.log_params("run", {"lr": "0.1"})
        with pytest.raises(TrackingError, match="413"):
            client.set_tags("run", {"cnn_jobs.state": "running"})


@pytest.mark.parametrize("shared", [True, False])
def test_folder_that_the_server_does_not_share_is_refused(tmp_path: Path, shared: bool) -> None:
    """MLflow's client writes to a folder of its own machine, and lists that one."""
    info = {"run_id": "run", "experiment_id": "1", "artifact_uri": f"file://{tmp_path / 'store'}"}
    files = [{"path": "plots/a.txt", "is_dir": False, "file_size": 4}] if shared else []

    def reply(path: str) -> Reply:
        content = {"files": files} if "/artifacts/list" in path else {"run": {"info": info, "data": {}}}
        return 200, json.dumps(content), JSON

    (tmp_path / "a.txt").write_text("text")
    with speaking(reply) as url:
        if shared:
            TrackingClient(url).upload("run", tmp_path / "a.txt", "plots/a.txt")
        else:
            with pytest.raises(ArtifactLocationError, match=r"file:///.*/store.* use a new --experiment") as caught:
                TrackingClient(url).upload("run", tmp_path / "a.txt", "plots/a.txt")
            assert caught.value.exit_code == 2
