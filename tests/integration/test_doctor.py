"""``cnn-jobs doctor`` as a user calls it: beside a healthy server, and with everything dead."""

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

from cnn_jobs.local_server import start_server, stop_server
from tests.helpers import servers

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

CHECKS = (
    *("data", "weights", "S3"),
    *("MLflow answers", "MLflow host name", "MLflow version", "MLflow database", "MLflow artifacts"),
    *("presigned downloads", "clock", "device", "threads", "shared memory", "disk", "versions"),
)


@dataclass(frozen=True)
class Seen:
    """What a call left on the screen."""

    code: int
    out: str
    err: str
    seconds: float

    def lines(self) -> dict[str, tuple[str, str]]:
        """Check to its result and what was found, from the table of a log."""
        table = self.out.partition("\n\n")[0].splitlines()
        found = {}
        for line in table:
            status, _, rest = line.partition(" ")
            (check,) = [each for each in CHECKS if rest.strip().startswith(each + " ")]
            found[check] = (status, rest.strip().removeprefix(check).strip())
        return found


def doctor(*arguments: str, **variables: str) -> Seen:
    command = [sys.executable, "-m", "cnn_jobs", "doctor", *arguments]
    ours = ("CNN_JOBS_", "MLFLOW_", "AWS_")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(ours) and "proxy" not in name.lower()
    }
    environment |= {"AWS_EC2_METADATA_DISABLED": "true", **variables}
    began = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return Seen(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    try:
        yield start_server(folder).url
    finally:
        stop_server(folder)


def test_a_healthy_server(server: str, tmp_path: Path) -> None:
    seen = doctor("--data", "shapes", "--state-dir", str(tmp_path / "state"), MLFLOW_TRACKING_URI=server)
    assert seen.code == 0, seen
    found = seen.lines()
    assert tuple(found) == CHECKS
    ok = [check for check, (status, _) in found.items() if status == "ok"]
    # The machine's own disk and shared memory may be small.
    assert {"data", "device", "versions", "threads", "clock", "presigned downloads"} <= set(ok)
    assert {check for check in CHECKS if check.startswith("MLflow")} <= set(ok)
    assert "mlflow-artifacts:/0 (of 'Default': 'cnn-jobs' is not made yet)" in found["MLflow artifacts"][1]
    assert found["weights"][0] == found["S3"][0] == "skipped"
    assert seen.out.rstrip().endswith("; a training can start")
    assert seen.err == ""
    assert not (tmp_path / "state").exists()


def test_json_is_one_line_with_the_same_in_it(server: str, tmp_path: Path) -> None:
    arguments = ("--json", "--task", "task4a", "--weights", "none", "--threads", "999", "--data", "shapes")
    seen = doctor(*arguments, "--state-dir", str(tmp_path), MLFLOW_TRACKING_URI=server)
    assert seen.out.count("\n") == 1
    content = json.loads(seen.out)
    assert sorted(content) == ["checks", "ok", "version"]
    assert content["ok"] is True
    assert tuple(each["check"] for each in content["checks"]) == CHECKS
    assert all(sorted(each) == ["advice", "check", "found", "status"] for each in content["checks"])
    (threads,) = [each for each in content["checks"] if each["check"] == "threads"]
    assert threads["status"] == "warning"
    assert threads["found"].startswith("999 threads for ")
    assert seen.code == 0


def test_everything_dead(tmp_path: Path) -> None:
    """Servers that take connections and never answer, a state directory that cannot be, a GPU that is not there."""
    (tmp_path / "file").write_text("in the way")
    with servers.silent() as mlflow, servers.silent() as s3:
        seen = doctor(
            *("--data", "s3://bucket/x.npz", "--weights", "s3://bucket/w.pth", "--task", "task4a"),
            *("--device", "cuda", "--threads", "999", "--state-dir", str(tmp_path / "file" / "state")),
            MLFLOW_TRACKING_URI=f"http://user:hunter2hunter2@{mlflow}",
            AWS_ENDPOINT_URL=f"http://{s3}",
            AWS_ACCESS_KEY_ID="AKIAABCDEFGHIJKLMNOP",
            AWS_SECRET_ACCESS_KEY="the-secret-of-aws",
        )
    assert seen.seconds < 30
    assert seen.code == 2
    found = seen.lines()
    assert tuple(found) == CHECKS
    failed = {check for check, (status, _) in found.items() if status == "failed"}
    assert failed >= {"S3", "MLflow answers", "disk"}
    assert found["MLflow answers"][1] == f"{mlflow} accepts connections, but sends no answer within 5 s"
    assert found["S3"][1].endswith(f"{s3} accepts connections, but sends no answer within 5 s")
    for check in CHECKS[4:10]:
        assert found[check] == ("skipped", "MLflow does not answer"), check
    assert found["threads"][0] == "warning"
    for secret in ("hunter2", "the-secret-of-aws", "AKIAABCDEFGHIJKLMNOP"):
        assert secret not in seen.out + seen.err
    assert "Traceback" not in seen.err
    numbers = [line.strip().partition(".")[0] for line in seen.out.partition("What to do:\n")[2].splitlines()]
    advised = sum(status in ("failed", "warning") for status, _ in found.values())
    assert numbers[:advised] == [str(number) for number in range(1, advised + 1)]


def test_what_hangs_for_good_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """A file that nobody ever writes, and a server that sends a byte now and then: no single wait is too long."""
    fifo = tmp_path / "data.npz"
    os.mkfifo(fifo)
    with servers.dripping() as mlflow:
        seen = doctor("--data", str(fifo), "--state-dir", str(tmp_path), MLFLOW_TRACKING_URI=f"http://{mlflow}")
    assert (seen.code, seen.seconds < 30) == (2, True)
    found = seen.lines()
    assert tuple(found) == CHECKS
    assert found["data"] == ("failed", "no answer within 15 s")
    assert found["MLflow answers"] == ("failed", f"http://{mlflow}: no answer within 13 s, not even a refusal")
    assert found["MLflow database"] == ("skipped", "MLflow does not answer")
    assert found["disk"][0] in ("ok", "warning")
    assert "Traceback" not in seen.err
    assert "Fatal Python error" not in seen.err


def test_an_address_whose_packets_are_dropped(tmp_path: Path) -> None:
    with servers.full() as where:
        seen = doctor(
            *("--data", "shapes", "--state-dir", str(tmp_path)),
            MLFLOW_TRACKING_URI=f"http://{where}",
        )
    assert (seen.code, seen.seconds < 30) == (2, True)
    assert seen.lines()["MLflow answers"] == ("failed", f"{where} does not accept a connection within 3 s")


def test_without_a_network_and_without_data(tmp_path: Path) -> None:
    seen = doctor(
        *("--task", "task4a", "--state-dir", str(tmp_path)),
        MLFLOW_TRACKING_URI="http://no-such-host.invalid:5000",
        HTTPS_PROXY=f"http://{servers.unused()}",
        CNN_JOBS_CACHE_DIR=str(tmp_path / "cache"),
        TORCH_HOME=str(tmp_path / "torch"),
    )
    assert (seen.code, seen.seconds < 30) == (2, True)
    found = seen.lines()
    assert [found[check][0] for check in ("data", "weights", "S3", "MLflow answers")] == [
        *("failed", "failed", "skipped", "failed")
    ]
    assert "the name 'no-such-host.invalid' cannot be resolved" in found["MLflow answers"][1]


def test_a_database_in_place_of_a_server_is_not_made(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    seen = doctor("--data", "shapes", "--state-dir", str(tmp_path / "state"), MLFLOW_TRACKING_URI=uri)
    assert seen.code == 0, seen
    found = seen.lines()
    assert found["MLflow answers"] == ("ok", f"{tmp_path / 'mlflow.db'} is not there yet: the first run makes it")
    assert found["MLflow database"] == ("skipped", "the database has no tables yet")
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_is_none(tmp_path: Path) -> None:
    seen = doctor("--data", "shapes", "--state-dir", str(tmp_path), MLFLOW_TRACKING_URI="mlflow:5000")
    assert seen.code == 2
    assert "must look like http://host:5000" in seen.lines()["MLflow answers"][1]


def test_a_task_that_is_none_is_a_mistake_in_one_line() -> None:
    seen = doctor("--task", "task9")
    assert (seen.code, seen.out) == (2, "")
    assert seen.err.startswith("error: unknown task 'task9'; the tasks are ")


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_on_a_terminal_nothing_is_cut_off(tmp_path: Path, columns: int) -> None:
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
