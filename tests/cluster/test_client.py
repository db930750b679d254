"""Responses of a cluster and how they are reported: one line, the next step, the exit code."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cnn_jobs.cluster.client import Cluster
from cnn_jobs.errors import ClusterRefusalError
from tests.helpers.calls import call
from tests.helpers.job_files import DOCUMENTS, ROOT
from tests.helpers.kubernetes_api import FakeApi
from tests.helpers.servers import unused

FORBIDDEN = 'jobs.batch is forbidden: User "me" cannot create resource "jobs" in API group "batch"'
QUOTA = 'jobs.batch "task2-x" is forbidden: exceeded quota: cnn-jobs, requested: count/jobs.batch=1, used: 500'
ANSWERS = [
    (401, "Unauthorized", 1, "rejects these credentials (401: Unauthorized); they may have expired: log in again"),
    (403, FORBIDDEN, 2, 'cannot create resource "jobs" in API group "batch"; ask for the Role cnn-jobs-submit'),
    (403, QUOTA, 1, "requested: count/jobs.batch=1, used: 500; wait until other Jobs are over"),
    (403, 'admission webhook "x" denied the request: no', 2, "the cluster's rules do not admit it: admission webhook"),
    (403, "unable to create new content in namespace cnn-jobs because it is being terminated", 1, "recreate it"),
    (404, 'namespaces "cnn-jobs" not found', 2, "the cluster has no namespace 'cnn-jobs'; choose one with --namespace"),
    (422, 'Job.batch "x" is invalid: spec.template: Required value', 2, 'considers it invalid: Job.batch "x" is'),
    (400, "strict decoding error", 2, "considers it invalid: strict decoding error"),
    (429, "too many requests", 1, "failed (429: too many requests); try again"),
    (500, "etcdserver: request timed out", 1, "failed (500: etcdserver: request timed out); try again"),
    (503, "apiserver not ready", 1, "failed (503: apiserver not ready); try again"),
    (418, "teapot", 2, "answered 418: teapot"),
]


@pytest.mark.parametrize(("status", "message", "code", "error"), ANSWERS, ids=lambda each: str(each)[:30])
def test_a_response_is_reported_in_one_line_with_its_exit_code(
    status: int, message: str, code: int, error: str, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.fail("POST", "/jobs", status, message)
    done = call(monkeypatch, "submit", "task2")
    assert (done.code, done.stdout) == (code, "")
    assert error in done.error
    assert api.jobs == {}


def test_an_unknown_namespace_is_exit_code_2(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    done = call(monkeypatch, "submit", "task2", "--namespace", "elsewhere")
    assert (done.code, done.stdout) == (2, "")
    assert "has no namespace 'elsewhere'" in done.error


@pytest.mark.parametrize("command", [("submit", "task2"), ("status",), ("logs", "x"), ("cancel", "x")])
def test_an_unreachable_server_is_exit_code_1(
    command: tuple[str, ...], api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.url = f"http://{unused()}"
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path / "other")))
    done = call(monkeypatch, *command)
    assert (done.code, done.stdout) == (1, "")
    assert f"the cluster at {api.url} does not answer" in done.error


def test_a_connection_closed_during_create_leaves_the_result_unknown(
    api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            version = b'{"gitVersion": "v1.36.0"}'
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(version)}\r\nConnection: close\r\n\r\n"
            with server.accept()[0] as asked:
                asked.recv(65536)
                asked.sendall(head.encode() + version)
            server.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        api.url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path / "other")))
        done = call(monkeypatch, "submit", "task2")
    assert done.code == 1
    assert "if it was created all the same, 'cnn-jobs status task2-" in done.error


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "no kubeconfig: "),
        ("{", "is unusable ("),
        ("", "is unusable ("),
        ("[]", "is unusable ("),
        ("current-context: x\ncontexts: []\nclusters: []\nusers: []\n", "is unusable ("),
    ],
)
def test_an_unusable_kubeconfig_is_exit_code_2(
    content: str | None, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(path))
    done = call(monkeypatch, "status")
    assert (done.code, done.stdout) == (2, "")
    assert error in done.error
    assert str(path) in done.error


def test_an_unknown_context_is_exit_code_2(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    done = call(monkeypatch, "status", "--context", "there")
    assert done.code == 2
    assert "there" in done.error


def test_credentials_come_from_the_kubeconfig(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "status", "--context", "here").code == 0
    assert set(api.tokens) == {"Bearer a-token"}


def test_without_the_client_the_error_names_the_extra(tmp_path: Path) -> None:
    script = "import sys; sys.modules['kubernetes'] = None\nfrom cnn_jobs.cli import main; main()"
    for command in (["submit", "task2"], ["status"], ["logs", "x"], ["cancel", "x"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *command], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: the Kubernetes client is not installed")
        assert line.endswith("pip install 'cnn-jobs[kubernetes]'")


def test_jobs_of_other_programs_are_not_touched(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    job = {**DOCUMENTS["task2-job.yaml"], "metadata": {"name": "theirs", "labels": {"app": "x"}}}
    api.add_job(job)
    assert Cluster("cnn-jobs").jobs() == []
    with pytest.raises(ClusterRefusalError, match="not from cnn-jobs; use kubectl"):
        Cluster("cnn-jobs").job("theirs")
    for command in ("status", "logs", "cancel"):
        assert call(monkeypatch, command, "theirs").code == 2
    assert "theirs" in api.jobs
