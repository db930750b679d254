"""The output of whole commands: only JSON, or text, and never a secret."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import write_prepared
from tests.helpers.json_lines import strict
from tests.helpers.survival import SMALL, Lab
from tests.helpers.tracking import unused_address
from tests.integration.test_endings import TABLE, Row, start

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
SECRETS = {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": KEY}
ROWS = [row for row in TABLE if not row.name.startswith("SIGKILL")]
NAMES = [row.name for row in ROWS]


def lines(text: str) -> list[dict[str, Any]]:
    return [strict(line) for line in text.splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_however_a_run_ends_every_line_is_json_with_its_task(lab: Lab, row: Row) -> None:
    row = replace(row, env={**row.env, "CNN_JOBS_LOG_FORMAT": "json"})
    ended = start(lab, row, f"log-{NAMES.index(row.name)}")
    assert ended.code == row.code
    assert ended.stderr == ""
    found = lines(ended.stdout)
    for line in found:
        assert list(line)[:5] == ["time", "level", "logger", "message", "task"]
        assert line["task"] == "task2"
    errors = [line for line in found if line["level"] in ("error", "critical")]
    assert bool(errors) == (row.code != 0)
    if row.reason:
        assert any(row.reason.removeprefix("SystemExit") in line["message"] for line in found) or errors
    if row.status:
        last = [line for line in found if "run_key" in line][-1]
        assert (last["run_key"], last["attempt"]) == (f"log-{NAMES.index(row.name)}", 1)


def command(tmp_path: Path, data: Path, crash: str, form: str) -> subprocess.CompletedProcess[str]:
    """Ends a new process, in which libraries are imported for the first time."""
    code = (
        "import sys; from tests.helpers.hooks import chatty; from cnn_jobs.cli import main; "
        f"sys.argv[0] = 'cnn-jobs'; chatty({crash!r}); main()"
    )
    own = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "CNN_JOBS_STATE_DIR": str(tmp_path / "state"),
        "CNN_JOBS_LOG_FORMAT": form,
        **SECRETS,
    }
    arguments = [sys.executable, "-c", code, "train", "task2", "--data", data, *SMALL]
    return subprocess.run(
        list(map(str, arguments)), env={**os.environ, **own}, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def small_file(tmp_path: Path, tiny_dataset: Dataset) -> Path:
    write_prepared(tiny_dataset, tmp_path / "small.npz", compressed=False)
    return tmp_path / "small.npz"


def test_output_of_libraries_goes_through_the_same_formatter(tmp_path: Path, small_file: Path) -> None:
    ended = command(tmp_path, small_file, "", "json")
    assert (ended.returncode, ended.stderr) == (0, "")
    found = {line.get("message", line.get("already")): line for line in lines(ended.stdout)}
    assert found["printed by a library"]["logger"] == "stdout"
    assert found["using ***"]["step"] == 3
    assert found["begun and ended"]["logger"] == "stderr"
    assert (found["in words"]["level"], found["in words"]["logger"]) == ("error", "stderr")
    assert "100% done" in {message.strip() for message in found}
    assert found["JSON"] == {"already": "JSON"}
    warning = found["UserWarning: two lines of http://ann:***@host with ***"]
    assert (warning["level"], warning["category"]) == ("warning", "UserWarning")
    for name in ("torch.fx", "mlflow.tracking", "urllib3.connectionpool", "somebody"):
        line = found[f"{name} warns of key ***"]
        assert (line["level"], line["logger"], line["step"]) == ("warning", name, 3)
    assert "nobody wants to know" not in found
    assert found["tried again"]["error"] == "ValueError"
    assert "ValueError: caught, with ***\n" in found["tried again"]["traceback"]
    assert not any(secret in ended.stdout for secret in (*SECRETS.values(), "hunter2"))


def test_a_crash_is_one_line_with_its_traceback(tmp_path: Path, small_file: Path) -> None:
    ended = command(tmp_path, small_file, "crash", "json")
    assert (ended.returncode, ended.stderr) == (1, "")
    line = lines(ended.stdout)[-1]
    assert (line["level"], line["error"], line["step"]) == ("critical", "ZeroDivisionError", 4)
    assert line["message"] == "ZeroDivisionError: made by a test, with ***"
    assert line["traceback"].startswith("Traceback (most recent call last):\n")


def test_text_has_no_secrets_and_no_terminal_codes(tmp_path: Path, small_file: Path) -> None:
    ended = command(tmp_path, small_file, "crash", "text")
    assert ended.returncode == 1
    whole = ended.stdout + ended.stderr
    assert not any(secret in whole for secret in (*SECRETS.values(), "hunter2"))
    assert "using ***" in ended.stdout
    assert "warning: UserWarning: two lines of http://ann:***@host with *** (warnings)" in ended.stderr
    assert "warning: torch.fx warns of key *** (torch.fx)" in ended.stderr
    assert ended.stderr.rstrip().endswith("ZeroDivisionError: made by a test, with ***")
    assert "\x1b" not in whole
    assert "step 4/12: train loss" not in ended.stderr  # it crashed before that validation
    assert "step 2/12: train loss" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "task2", "--data", "/no/such/file.npz"], 2, "/no/such/file.npz"),
        (["train", "task2", "--data", "shapes", "--epochs", "many"], 2, "'many'"),
        (["train", "task9"], 2, "task9"),
        (["train", "task2", "--data", "shapes", "--run-key", "a b"], 2, "--run-key is 'a b'"),
        (["runs"], 1, "MLflow at http://ann:***@"),
        (["no-such-command"], 2, "no-such-command"),
        (["--help"], 0, "Usage"),
        (["tasks"], 0, "task3e"),
    ],
)
def test_any_command_in_a_pod_writes_json(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    address = unused_address().replace("http://", "http://ann:hunter2@")
    own = {
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "MLFLOW_TRACKING_URI": address,
        "CNN_JOBS_STATE_DIR": str(tmp_path),
        "CNN_JOBS_METRICS_PORT": "0",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "cnn_jobs", *arguments],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (code, "")
    found = lines(ended.stdout)
    assert any(message in line["message"] for line in found)
    assert any(line["level"] == "error" for line in found) == (code != 0)
    assert "hunter2" not in ended.stdout
