"""Checks run at the same time with a limit; a fault fails one check, and those that depend on it are skipped."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cnn_jobs.doctor.examination import BackgroundCall, NoAnswerError, Subject, data_checks, mlflow_checks, run
from cnn_jobs.doctor.finding import Finding, SkippedError, ok, warning
from cnn_jobs.errors import DataError
from cnn_jobs.tracking import probe
from tests.helpers import servers
from tests.helpers.tracking import MLFLOW_WARNING

pytestmark = pytest.mark.filterwarnings(MLFLOW_WARNING)


def subject(folder: Path, **changes: str) -> Subject:
    values = {"data": "shapes", "task": "", "weights": "", "tracking_uri": "", "experiment": "ours", "device": "cpu"}
    return Subject(**{**values, **changes}, state_dir=folder, threads=0)  # type: ignore[arg-type]


def of_mlflow(uri: str, folder: Path) -> dict[str, Finding]:
    probe.prepare()
    return {each.check: each for each in run(mlflow_checks(subject(folder, tracking_uri=uri)), 30)}


def test_a_healthy_database(mlflow_uri: str, tmp_path: Path) -> None:
    found = of_mlflow(mlflow_uri, tmp_path)
    assert {name for name, each in found.items() if each.status == "ok"} == {
        "MLflow answers",
        "MLflow database",
        "MLflow artifacts",
    }
    assert {each.found for each in found.values() if each.status == "skipped"} == {
        "MLFLOW_TRACKING_URI names a database, no server"
    }


def test_a_damaged_database_fails_once(mlflow_uri: str, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"damaged" * 1000)
    found = of_mlflow(mlflow_uri, tmp_path)
    assert [name for name, each in found.items() if each.status == "failed"] == ["MLflow answers"]
    assert found["MLflow database"].found == found["MLflow artifacts"].found == "the database does not open"


def test_an_unreachable_server_fails_once(tmp_path: Path) -> None:
    found = of_mlflow(f"http://{servers.unused()}", tmp_path)
    assert [name for name, each in found.items() if each.status == "failed"] == ["MLflow answers"]
    assert {each.found for name, each in found.items() if name != "MLflow answers"} == {"MLflow does not answer"}


def test_an_invalid_address_fails_once(tmp_path: Path) -> None:
    found = of_mlflow("mlflow:5000", tmp_path)
    assert [name for name, each in found.items() if each.status == "failed"] == ["MLflow answers"]
    assert len(found) == 7


def test_an_unreachable_bucket_fails_once(tmp_path: Path, aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{servers.unused()}")
    wanted = subject(tmp_path, data="s3://bucket/x.npz", weights="s3://bucket/w.pth")
    found = {each.check: each for each in run(data_checks(wanted), 30)}
    assert {name: each.status for name, each in found.items()} == {
        "data": "skipped",
        "weights": "skipped",
        "S3": "failed",
    }


def test_checks_run_at_the_same_time_and_keep_their_order() -> None:
    meeting = threading.Barrier(2, timeout=10)

    def wait() -> Finding:
        meeting.wait()  # each needs the other to be running
        return ok("met")

    found = run({"a": wait, "b": wait, "c": lambda: warning("w", "do")}, 10)
    assert [(each.check, each.status) for each in found] == [("a", "ok"), ("b", "ok"), ("c", "warning")]


def test_a_hanging_check_fails_and_delays_no_other() -> None:
    ended = threading.Event()
    began = time.monotonic()
    found = run({"hangs": lambda: ok(str(ended.wait(30))), "works": lambda: ok("fine")}, 0.3)
    assert time.monotonic() - began < 5
    ended.set()
    assert [each.status for each in found] == ["failed", "ok"]
    assert found[0].found == "no answer within 0 s"


def broken() -> Finding:
    raise ZeroDivisionError("by zero,\nand more")


def test_a_bug_in_a_check_is_a_finding_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = run({"broken": broken}, 10)
    assert found.status == "failed"
    assert found.found.startswith("ZeroDivisionError: by zero, and more (test_examination.py, line ")
    assert "report" in found.advice
    assert capsys.readouterr() == ("", "")


def test_known_errors_are_reported_by_kind() -> None:
    def refused() -> Finding:
        raise DataError("x: no such file; give another one")

    def not_installed() -> Finding:
        import no_such_package_anywhere  # type: ignore[import-not-found]  # noqa: F401

        return ok("")

    def skips() -> Finding:
        raise SkippedError("no server")

    def waits() -> Finding:
        return BackgroundCall(lambda: ok(str(ended.wait(30)))).result(0.1)

    ended = threading.Event()
    first, second, third, fourth = run({"a": refused, "b": not_installed, "c": skips, "d": waits}, 10)
    ended.set()
    assert (first.found, first.advice) == ("x: no such file", "give another one")
    assert "No module named 'no_such_package_anywhere'" in second.found
    assert "versions" in second.advice
    assert (third.status, third.found) == ("skipped", "no server")
    assert (fourth.status, fourth.found) == ("failed", "no answer within 0 s")


def test_a_background_call_runs_once_and_everybody_gets_its_error() -> None:
    calls: list[int] = []

    def call() -> int:
        calls.append(1)
        time.sleep(0.05)
        raise DataError("no")

    shared = BackgroundCall(call)
    for _ in range(3):
        with pytest.raises(DataError, match="no"):
            shared.result(10)
    assert calls == [1]
    assert BackgroundCall(lambda: 7).result(10) == 7


def test_waiting_for_a_background_call_is_limited() -> None:
    ended = threading.Event()
    shared = BackgroundCall(lambda: ended.wait(30))
    with pytest.raises(NoAnswerError, match="no answer within 0 s"):
        shared.result(0.1)
    ended.set()
    assert shared.result(10) is True
