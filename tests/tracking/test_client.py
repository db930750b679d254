"""Calls to MLflow."""

from __future__ import annotations

import pytest

from cnn_jobs.errors import TrackingError, TrackingUriError
from cnn_jobs.tracking.client import TrackingClient
from cnn_jobs.tracking.records import Metric
from tests.helpers.servers import answering
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
