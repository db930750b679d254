"""Runs that hold documents, without MLflow or without documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnn_jobs.errors import NotShippedError
from cnn_jobs.tracking import document_run
from cnn_jobs.tracking.document_run import log_documents
from cnn_jobs.tracking.recorder import JournalRecorder
from tests.helpers.tracking import only_run


@pytest.mark.parametrize(("pod", "code", "message"), [(False, 75, "the rest is in "), (True, 1, "the rest is lost")])
def test_exit_code_without_mlflow_depends_on_whether_the_state_survives(
    pod: bool, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JournalRecorder.start, "__defaults__", (lambda: False, 0.1))
    monkeypatch.setattr(document_run, "DEADLINE_S", 0.2)
    if pod:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    state = tmp_path / "state"
    with pytest.raises(NotShippedError, match=message) as caught:
        log_documents(
            "task1", "page", lambda _: None, tracking_uri="http://127.0.0.1:1", experiment="course", state_dir=state
        )
    assert caught.value.exit_code == code
    assert len(list(state.iterdir())) == 1


def test_failure_to_write_the_documents_ends_the_run_as_failed(mlflow_uri: str, tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        raise ValueError("made by the test")

    with pytest.raises(ValueError, match="made by the test"):
        log_documents(
            "task1", "page", write, tracking_uri=mlflow_uri, experiment="course", state_dir=tmp_path / "state"
        )
    run = only_run(mlflow_uri, "course")
    assert (run.info.status, run.data.tags["cnn_jobs.reason"]) == ("FAILED", "ValueError: made by the test")
