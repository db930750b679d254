"""Calls to MLflow."""

from __future__ import annotations

import pytest

from cnn_jobs.errors import TrackingUriError
from cnn_jobs.tracking.client import TrackingClient
from tests.helpers.tracking import MLFLOW_WARNING


@pytest.mark.filterwarnings(MLFLOW_WARNING)
def test_missing_database_driver_is_a_one_line_error() -> None:
    with pytest.raises(TrackingUriError, match="its driver is missing") as caught:
        TrackingClient("mssql+pymssql://user:secret@127.0.0.1/base").has_experiment("any")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
