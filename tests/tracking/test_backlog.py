"""What a recorder says of its delivery while others look."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cnn_jobs.tracking.connection import UPLOAD_ERRORS
from cnn_jobs.tracking.recorder import JournalRecorder
from tests.conftest import until
from tests.helpers.tracking import answering, finish, recording, unused_address


def errors(recorder: JournalRecorder) -> dict[str, int]:
    assert set(recorder.upload_errors) == set(UPLOAD_ERRORS)
    return {kind: count for kind, count in recorder.upload_errors.items() if count}


def test_a_server_that_has_everything_leaves_no_backlog(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path) as recorder:
        for step in range(50):
            recorder.metrics({"train/loss": 1.0}, step)
        until(lambda: recorder.backlog()[0] == 0)
        assert recorder.backlog()[1] == 0
        assert finish(recorder)
        assert recorder.backlog()[0] == 0
    assert errors(recorder) == {}


def test_a_backlog_counts_every_record_and_the_time_since_all_was_there(tmp_path: Path) -> None:
    with recording(unused_address(), tmp_path) as recorder:
        before = recorder.backlog()[0]
        for step in range(7):
            recorder.metrics({"train/loss": 1.0, "val/loss": 2.0}, step)
        assert recorder.backlog()[0] == before + 7
        first = recorder.backlog()[1]
        time.sleep(0.2)
        assert 0.2 <= recorder.backlog()[1] - first < 5
        until(lambda: errors(recorder))
        assert set(errors(recorder)) == {"no_answer"}
        recorder.stop()


@pytest.mark.parametrize(
    ("status", "body", "kind", "content"),
    [
        (503, "no", "text/plain", "server_error"),
        (429, "slow", "text/plain", "throttled"),
        (418, '{"detail": "I am a teapot"}', "application/json", "foreign"),
    ],
)
def test_a_failed_call_counts_by_its_kind(status: int, body: str, kind: str, content: str, tmp_path: Path) -> None:
    with answering(status, body, kind) as uri, recording(uri, tmp_path) as recorder:
        until(lambda: errors(recorder))
        assert set(errors(recorder)) == {content}
        recorder.stop()


def test_a_refused_record_counts_and_is_no_backlog(mlflow_uri: str, tmp_path: Path) -> None:
    with recording(mlflow_uri, tmp_path) as recorder:
        recorder.metrics({"bad#name": 1.0}, 1)
        until(lambda: errors(recorder) == {"refused": 1})
        until(lambda: recorder.backlog()[0] == 0)
        recorder.stop()
