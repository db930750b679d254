"""``cnn-jobs doctor`` as a process: with a healthy server, and with hanging or missing ones."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cnn_jobs.local_server.server import start_server, stop_server
from tests.helpers import servers

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

CHECKS = (
    *("data", "weights", "S3"),
    *("MLflow answers", "MLflow host name", "MLflow version", "MLflow database", "MLflow artifacts"),
    *("presigned downloads", "clock", "device", "threads", "shared memory", "disk", "versions"),
)


@dataclass(frozen=True)
class Output:
    """Exit code, output and duration of a call."""

    code: int
    out: str
    err: str
    seconds: float

    def lines(self) -> dict[str, tuple[str, str]]:
        """Check to its status and what was found, from the lines of a log."""
        table = self.out.partition("\n\n")[0].splitlines()
        found = {}
        for line in table:
            status, _, rest = line.partition(" ")
            (check,) = [each for each in CHECKS if rest.strip().startswith(each + " ")]
            found[check] = (status, rest.strip().removeprefix(check).strip())
        return found


def doctor(*arguments: str, **variables: str) -> Output:
    command = [sys.executable, "-m", "cnn_jobs", "doctor", *arguments]
    ours = ("CNN_JOBS_", "MLFLOW_", "AWS_")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(ours) and "proxy" not in name.lower()
    }
    environment |= {"AWS_EC2_METADATA_DISABLED": "true", **variables}
    began = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return Output(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    try:
        yield start_server(folder).url
    finally:
        stop_server(folder)


def test_a_healthy_server(server: str, tmp_path: Path) -> None:
    output = doctor("--data", "shapes", "--state-dir", str(tmp_path / "state"), MLFLOW_TRACKING_URI=server)
    assert output.code == 0, output
    found = output.lines()
    assert tuple(found) == CHECKS
    ok = [check for check, (status, _) in found.items() if status == "ok"]
    # This machine's disk and shared memory may be small.
    assert {"data", "device", "versions", "threads", "clock", "presigned downloads"} <= set(ok)
    assert {check for check in CHECKS if check.startswith("MLflow")} <= set(ok)
    assert "mlflow-artifacts:/0 (of 'Default': 'cnn-jobs' does not exist yet)" in found["MLflow artifacts"][1]
    assert found["weights"][0] == found["S3"][0] == "skipped"
    assert output.out.rstrip().endswith("; a training can start")
    assert output.err == ""
    assert not (tmp_path / "state").exists()


def test_json_is_one_line_with_all_checks(server: str, tmp_path: Path) -> None:
    arguments = ("--json", "--task", "task4a", "--weights", "none", "--threads", "999", "--data", "shapes")
    output = doctor(*arguments, "--state-dir", str(tmp_path), MLFLOW_TRACKING_URI=server)
    assert output.out.count("\n") == 1
    content = json.loads(output.out)
    assert sorted(content) == ["checks", "ok", "version"]
    assert content["ok"] is True
    assert tuple(each["check"] for each in content["checks"]) == CHECKS
    assert all(sorted(each) == ["advice", "check", "found", "status"] for each in content["checks"])
    (threads,) = [each for each in content["checks"] if each["check"] == "threads"]
    assert threads["status"] == "warning"
    assert threads["found"].startswith("999 threads for ")
    assert output.code == 0


def test_everything_fails(tmp_path: Path) -> None:
    """Servers that never answer, an impossible state directory, a missing GPU."""
    (tmp_path / "file").write_text("in the way")
    with servers.silent() as mlflow, servers.silent() as s3:
        output = doctor(
            *("--data", "s3://bucket/x.npz", "--weights", "s3://bucket/w.pth", "--task", "task4a"),
            *("--device", "cuda", "--threads", "999", "--state-dir", str(tmp_path / "file" / "state")),
            MLFLOW_TRACKING_URI=f"http://user:hunter2hunter2@{mlflow}",
            AWS_ENDPOINT_URL=f"http://{s3}",
            AWS_ACCESS_KEY_ID="AKIAABCDEFGHIJKLMNOP",
            AWS_SECRET_ACCESS_KEY="the-secret-of-aws",
        )
    assert output.seconds < 30
    assert output.code == 2
    found = output.lines()
    assert tuple(found) == CHECKS
    failed = {check for check, (status, _) in found.items() if status == "failed"}
    assert failed >= {"S3", "MLflow answers", "disk"}
    assert found["MLflow answers"][1] == f"{mlflow} accepts connections, but sends no answer within 5 s"
    assert found["S3"][1].endswith(f"{s3} accepts connections, but sends no answer within 5 s")
    for check in CHECKS[4:10]:
        assert found[check] == ("skipped", "MLflow does not answer"), check
    assert found["threads"][0] == "warning"
    for secret in ("hunter2", "the-secret-of-aws", "AKIAABCDEFGHIJKLMNOP"):
        assert secret not in output.out + output.err
    assert "Traceback" not in output.err
    numbers = [line.strip().partition(".")[0] for line in output.out.partition("What to do:\n")[2].splitlines()]
    advised = sum(status in ("failed", "warning") for status, _ in found.values())
    assert numbers[:advised] == [str(number) for number in range(1, advised + 1)]


def test_endless_reads_do_not_delay_the_exit(tmp_path: Path) -> None:
    """A FIFO without a writer, and a server that sends single bytes, so that no read times out."""
    fifo = tmp_path / "data.npz"
    os.mkfifo(fifo)
    with servers.dripping() as mlflow:
        output = doctor("--data", str(fifo), "--state-dir", str(tmp_path), MLFLOW_TRACKING_URI=f"http://{mlflow}")
    assert (output.code, output.seconds < 30) == (2, True)
    found = output.lines()
    assert tuple(found) == CHECKS
    assert found["data"] == ("failed", "no answer within 15 s")
    assert found["MLflow answers"] == ("failed", f"http://{mlflow}: no answer within 13 s, not even a refusal")
    assert found["MLflow database"] == ("skipped", "MLflow does not answer")
    assert found["disk"][0] in ("ok", "warning")
    assert "Traceback" not in output.err
    assert "Fatal Python error" not in output.err


def test_dropped_packets(tmp_path: Path) -> None:
    with servers.full() as where:
        output = doctor(
            *("--data", "shapes", "--state-dir", str(tmp_path)),
            MLFLOW_TRACKING_URI=f"http://{where}",
        )
    assert (output.code, output.seconds < 30) == (2, True)
    assert output.lines()["MLflow answers"] == ("failed", f"{where} does not accept a connection within 3 s")


def test_without_a_network_and_without_data(tmp_path: Path) -> None:
    output = doctor(
        *("--task", "task4a", "--state-dir", str(tmp_path)),
        MLFLOW_TRACKING_URI="http://no-such-host.invalid:5000",
        HTTPS_PROXY=f"http://{servers.unused()}",
        CNN_JOBS_CACHE_DIR=str(tmp_path / "cache"),
        TORCH_HOME=str(tmp_path / "torch"),
    )
    assert (output.code, output.seconds < 30) == (2, True)
    found = output.lines()
    assert [found[check][0] for check in ("data", "weights", "S3", "MLflow answers")] == [
        *("failed", "failed", "skipped", "failed")
    ]
    assert "the name 'no-such-host.invalid' cannot be resolved" in found["MLflow answers"][1]


def test_a_missing_database_is_not_created(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    output = doctor("--data", "shapes", "--state-dir", str(tmp_path / "state"), MLFLOW_TRACKING_URI=uri)
    assert output.code == 0, output
    found = output.lines()
    assert found["MLflow answers"] == ("ok", f"{tmp_path / 'mlflow.db'} does not exist yet: the first run creates it")
    assert found["MLflow database"] == ("skipped", "the database has no tables yet")
    assert list(tmp_path.iterdir()) == []


def test_an_invalid_address(tmp_path: Path) -> None:
    output = doctor("--data", "shapes", "--state-dir", str(tmp_path), MLFLOW_TRACKING_URI="mlflow:5000")
    assert output.code == 2
    assert "must look like http://host:5000" in output.lines()["MLflow answers"][1]


def test_an_unknown_task_is_a_one_line_error() -> None:
    output = doctor("--task", "task9")
    assert (output.code, output.out) == (2, "")
    assert output.err.startswith("error: unknown task 'task9'; the tasks are ")


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_on_a_terminal_nothing_is_truncated(tmp_path: Path, columns: int) -> None:
    folder = tmp_path / ("a" * 60) / ("b" * 60)
    script = (
        "import sys; from cnn_jobs.cli.doctor import show; from cnn_jobs.doctor.finding import failed, ok;"
        "show([ok(sys.argv[1]).of('disk'), failed('x', sys.argv[1]).of('presigned downloads')], sys.stdout)"
    )
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color"}
    with subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=follower, env=environment) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
    os.close(leader)
    assert process.returncode == 0
    text = shown.decode()
    assert "\u2026" not in text
    assert "\x1b[1;31mfailed" in text
    table, _, advice = text.partition("What to do:")
    assert str(folder) in "".join(part.strip() for part in table.splitlines()).replace(" ", "")
    assert f" 1. presigned downloads: {folder}\r\n" in advice
