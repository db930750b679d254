"""Who waits for whom: a check whose ground is missing says so, and does not fail a second time."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnn_jobs.doctor import examine
from cnn_jobs.doctor.examine import run
from cnn_jobs.doctor.finding import Finding
from cnn_jobs.tracking import probe
from tests.conftest import MLFLOW_WARNING
from tests.helpers import servers

pytestmark = pytest.mark.filterwarnings(MLFLOW_WARNING)


def subject(folder: Path, **changes: str) -> examine.Subject:
    values = {"data": "shapes", "task": "", "weights": "", "tracking_uri": "", "experiment": "ours", "device": "cpu"}
    return examine.Subject(**{**values, **changes}, state_dir=folder, threads=0)  # type: ignore[arg-type]


def of_mlflow(uri: str, folder: Path) -> dict[str, Finding]:
    probe.prepare()
    return {each.check: each for each in run(examine._of_mlflow(subject(folder, tracking_uri=uri)), 30)}


def test_a_database_that_is_fine(mlflow_uri: str, tmp_path: Path) -> None:
    found = of_mlflow(mlflow_uri, tmp_path)
    assert {name for name, each in found.items() if each.status == "ok"} == {
        "MLflow answers",
        "MLflow database",
        "MLflow artifacts",
    }
    assert {each.found for each in found.values() if each.status == "skipped"} == {
        "MLFLOW_TRACKING_URI names a database, no server"
    }


def test_a_database_that_is_damaged_fails_once(mlflow_uri: str, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"damaged" * 1000)
    found = of_mlflow(mlflow_uri, tmp_path)
    assert [name for name, each in found.items() if each.status == "failed"] == ["MLflow answers"]
    assert found["MLflow database"].found == found["MLflow artifacts"].found == "the database does not open"


def test_a_server_that_refuses_fails_once(tmp_path: Path) -> None:
    found = of_mlflow(f"http://{servers.unused()}", tmp_path)
    assert [name for name, each in found.items() if each.status == "failed"] == ["MLflow answers"]
    assert {each.found for name, each in found.items() if name != "MLflow answers"} == {"MLflow does not answer"}


def test_an_address_that_is_none_fails_once(tmp_path: Path) -> None:
    found = of_mlflow("mlflow:5000", tmp_path)
    assert [name for name, each in found.items() if each.status == "failed"] == ["MLflow answers"]
    assert len(found) == 7


def test_a_bucket_that_cannot_be_asked_fails_once(tmp_path: Path, aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{servers.unused()}")
    wanted = subject(tmp_path, data="s3://bucket/x.npz", weights="s3://bucket/w.pth")
    found = {each.check: each for each in run(examine._of_data(wanted), 30)}
    assert {name: each.status for name, each in found.items()} == {
        "data": "skipped",
        "weights": "skipped",
        "S3": "failed",
    }
