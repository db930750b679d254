"""What whole commands log: every line as JSON, or text, and never a secret."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.endings import ENDINGS, Ending
from tests.helpers.log_lines import strict_json
from tests.helpers.servers import unused
from tests.helpers.survival import SMALL, Lab
from tests.helpers.tracking import MLFLOW_WARNING, only_run

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
SECRETS = {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": KEY}
LOGGED = [ending for ending in ENDINGS if not ending.name.startswith("SIGKILL")]


def records(text: str) -> list[dict[str, Any]]:
    return [strict_json(line) for line in text.splitlines()]


@pytest.mark.parametrize("ending", LOGGED, ids=lambda ending: ending.name)
def test_every_line_of_a_run_is_json_and_names_the_run(lab: Lab, ending: Ending) -> None:
    key = f"log-{LOGGED.index(ending)}"
    done = ending.start(lab, key, CNN_JOBS_LOG_FORMAT="json")
    assert (done.code, done.stderr) == (ending.code, "")
    found = records(done.stdout)
    for record in found:
        assert list(record)[:5] == ["time", "level", "logger", "message", "task"]
        assert record["task"] == "task2"
    errors = [record for record in found if record["level"] in ("error", "critical")]
    assert bool(errors) == (ending.code != 0)
    if ending.reason:
        assert any(ending.reason.removeprefix("SystemExit") in record["message"] for record in found) or errors
    if ending.status:
        last = [record for record in found if "run_key" in record][-1]
        assert (last["run_key"], last["attempt"]) == (key, 1)


def train(tmp_path: Path, data: Path, crash: str, form: str) -> subprocess.CompletedProcess[str]:
    """A training in a new process, which imports the libraries first."""
    code = (
        "import sys; from tests.helpers.hooks import noisy_libraries; from cnn_jobs.cli import main; "
        f"sys.argv[0] = 'cnn-jobs'; noisy_libraries({crash!r}); main()"
    )
    environment = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "CNN_JOBS_STATE_DIR": str(tmp_path / "state"),
        "CNN_JOBS_LOG_FORMAT": form,
        **SECRETS,
    }
    return run(
        [sys.executable, "-c", code, "train", "task2", "--data", data, *SMALL, "--run-name", "a\x1b]0;b"], environment
    )


def run(command: list[object], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    own = {**os.environ, **environment}
    return subprocess.run(list(map(str, command)), env=own, capture_output=True, text=True, timeout=120, check=False)


def has_secret(text: str) -> bool:
    return any(secret in text for secret in (*SECRETS.values(), "hunter2"))


def test_output_of_libraries_is_formatted(tmp_path: Path, small_file: Path) -> None:
    done = train(tmp_path, small_file, "", "json")
    assert (done.returncode, done.stderr) == (0, "")
    found = {record.get("message", record.get("already")): record for record in records(done.stdout)}
    assert found["printed by a library"]["logger"] == "stdout"
    assert found["using ***"]["step"] == 3
    assert found["begun and ended"]["logger"] == "stderr"
    assert (found["in words"]["level"], found["in words"]["logger"]) == ("error", "stderr")
    assert "100% done" in {message.strip() for message in found}
    assert found["JSON"] == {"already": "JSON"}
    warning = found["UserWarning: two lines of http://ann:***@host with ***"]
    assert (warning["level"], warning["category"]) == ("warning", "UserWarning")
    for name in ("torch.fx", "mlflow.tracking", "urllib3.connectionpool", "somebody"):
        record = found[f"{name} warns of key ***"]
        assert (record["level"], record["logger"], record["step"]) == ("warning", name, 3)
    assert "not shown" not in found
    assert found["retried"]["error"] == "ValueError"
    assert "ValueError: caught, with ***\n" in found["retried"]["traceback"]
    assert not has_secret(done.stdout)


def test_crash_is_one_line_with_its_traceback(tmp_path: Path, small_file: Path) -> None:
    done = train(tmp_path, small_file, "crash", "json")
    assert (done.returncode, done.stderr) == (1, "")
    record = records(done.stdout)[-1]
    assert (record["level"], record["error"], record["step"]) == ("critical", "ZeroDivisionError", 4)
    assert record["message"] == "ZeroDivisionError: made by a test, with ***"
    assert record["traceback"].startswith("Traceback (most recent call last):\n")


def test_text_has_neither_secrets_nor_terminal_codes(tmp_path: Path, small_file: Path) -> None:
    done = train(tmp_path, small_file, "crash", "text")
    assert done.returncode == 1
    text = done.stdout + done.stderr
    assert not has_secret(text)
    assert "using ***" in done.stdout
    assert "warning: UserWarning: two lines of http://ann:***@host with *** (warnings)" in done.stderr
    assert "warning: torch.fx warns of key *** (torch.fx)" in done.stderr
    assert done.stderr.rstrip().endswith("ZeroDivisionError: made by a test, with ***")
    assert "\x1b" not in text
    assert "step 4/12: train loss" not in done.stderr  # the crash precedes that validation
    assert "step 2/12: train loss" in done.stderr


@pytest.mark.filterwarnings(MLFLOW_WARNING)
@pytest.mark.parametrize(
    ("output", "form"),
    [
        (">&-", "text"),
        (">/dev/full", "text"),
        ("2>/dev/full", "text"),
        ("<&- >&- 2>&-", "text"),
        (">/dev/full 2>&1", "json"),
        (">&- 2>&-", "json"),
    ],
)
def test_lost_output_does_not_change_how_a_run_ends(output: str, form: str, tmp_path: Path, small_file: Path) -> None:
    command = [sys.executable, "-m", "cnn_jobs", "train", "task2", "--data", small_file, *SMALL]
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "CNN_JOBS_STATE_DIR": str(tmp_path)}
    done = run(["bash", "-c", f'exec "$@" {output}', "train", *command], {**environment, "CNN_JOBS_LOG_FORMAT": form})
    assert done.returncode == 0, done.stderr
    assert only_run(environment["MLFLOW_TRACKING_URI"]).info.status == "FINISHED"


def test_lost_output_of_other_commands_is_an_error() -> None:
    done = run(["bash", "-c", 'exec "$@" >/dev/full', "tasks", sys.executable, "-m", "cnn_jobs", "tasks"], {})
    assert done.returncode != 0


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
def test_every_command_in_a_pod_logs_json(arguments: list[object], code: int, message: str, tmp_path: Path) -> None:
    environment = {
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "MLFLOW_TRACKING_URI": f"http://ann:hunter2@{unused()}",
        "CNN_JOBS_STATE_DIR": str(tmp_path),
        "CNN_JOBS_METRICS_PORT": "0",
    }
    done = run([sys.executable, "-m", "cnn_jobs", *arguments], environment)
    assert (done.returncode, done.stderr) == (code, "")
    found = records(done.stdout)
    assert any(message in record["message"] for record in found)
    assert any(record["level"] == "error" for record in found) == (code != 0)
    assert not has_secret(done.stdout)
