from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest

from cnn_jobs.doctor import network, server
from cnn_jobs.doctor.finding import Finding
from cnn_jobs.system.environment import version_of
from cnn_jobs.tracking import probe
from tests.helpers import servers
from tests.helpers.servers import JSON, like_mlflow

Reply = Callable[[str], servers.Reply]
HTML = {"Content-Type": "text/html"}
REFUSED_HOST = (403, "Invalid Host header - possible DNS rebinding attack detected", {"Content-Type": "text/plain"})


@pytest.fixture(autouse=True)
def _mlflow() -> None:
    probe.prepare()


def checked(reply: Reply, check: Callable[[server.Contact], Finding]) -> Finding:
    with servers.speaking(reply) as url:
        return check(server.get_contact(url))


def always(answer: servers.Reply) -> Reply:
    return lambda path: answer


def test_a_healthy_server() -> None:
    with servers.speaking(like_mlflow(version_of("mlflow"))) as url:
        contact = server.get_contact(url)
        checks = (server.check_answers, server.check_host, server.check_version, server.check_database)
        assert [check(contact).status for check in checks] == ["ok"] * 4
        assert url in server.check_answers(contact).found
        assert server.check_clock(contact).status == "ok"


@pytest.mark.parametrize(
    ("answer", "found", "advice"),
    [
        (
            (401, "You are not authenticated", HTML),
            "requires a login (401: You are not auth",
            "MLFLOW_TRACKING_USERNAME",
        ),
        ((403, '{"error_code": "PERMISSION_DENIED"}', JSON), "does not admit this user (403", "permission"),
    ],
)
def test_a_missing_or_insufficient_login(answer: servers.Reply, found: str, advice: str) -> None:
    finding = checked(like_mlflow(search=answer), server.check_answers)
    assert finding.status == "failed"
    assert found in finding.found
    assert advice in finding.advice
    assert checked(like_mlflow(search=answer), server.check_database).status == "skipped"


def test_a_login_comes_from_the_address_or_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.speaking(like_mlflow(), login="me:hunter2") as url:
        assert server.check_answers(server.get_contact(url)).status == "failed"
        assert "requires a login" in server.check_answers(server.get_contact(url.replace("//", "//me:wrong@"))).found
        finding = server.check_answers(server.get_contact(url.replace("//", "//me:hunter2@"))).of("x")
        assert (finding.status, "hunter2" in finding.found) == ("ok", False)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
        assert server.check_answers(server.get_contact(url)).status == "ok"


def test_a_named_certificate_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = servers.certificate(tmp_path / "server.pem")
    with servers.speaking(like_mlflow(), certificate) as url:
        with pytest.raises(server.UnreachableError, match="is not trusted") as caught:
            server.get_contact(url)
        assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in caught.value.advice
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        assert server.check_database(server.get_contact(url)).status == "ok"


@pytest.mark.parametrize(
    "answer",
    [
        (200, "<html><title>Welcome to nginx!</title></html>", HTML),
        (404, '{"detail": "Not Found"}', JSON),
        (200, '["a", "list"]', JSON),
    ],
)
def test_another_kind_of_server_is_no_mlflow(answer: servers.Reply) -> None:
    finding = checked(always(answer), server.check_answers)
    assert finding.status == "failed"
    assert f"answers, but is no MLflow (/health: {answer[0]} " in finding.found
    assert "check host, port and path" in finding.advice
    for check in (server.check_host, server.check_version, server.check_database):
        assert checked(always(answer), check).status == "skipped"


def test_an_mlflow_without_health_page_is_recognised_by_its_api() -> None:
    def reply(path: str) -> servers.Reply:
        return (200, '{"experiments": []}', JSON) if "experiments" in path else (404, "no", HTML)

    assert checked(reply, server.check_answers).status == "ok"
    finding = checked(reply, server.check_version)
    assert (finding.status, "does not report its version (/version: 404 text/html no)" in finding.found) == (
        "warning",
        True,
    )


def test_a_rejected_host_name() -> None:
    with servers.speaking(like_mlflow(search=REFUSED_HOST)) as url:
        contact = server.get_contact(url)
        finding = server.check_host(contact)
        assert finding.status == "failed"
        assert f"rejects the host name '{network.shown(url)}'" in finding.found
        assert "--allowed-hosts '127.0.0.1,127.0.0.1:*'" in finding.advice
        # It does answer; the search is skipped.
        assert server.check_answers(contact).status == "ok"
        assert server.check_database(contact).status == "skipped"


@pytest.mark.parametrize(
    ("version", "status", "advice"),
    [
        ("3.17.0", "ok", ""),
        ("3.99.1", "ok", ""),
        ("3.17.0.dev0", "failed", "run the server with MLflow"),
        ("3.16.4", "failed", "after 'mlflow db upgrade'"),
        ("2.22.0", "failed", "after 'mlflow db upgrade'"),
        ("4.0.1", "failed", "use a cnn-jobs that supports mlflow 4.0.1"),
    ],
)
def test_the_servers_version(version: str, status: str, advice: str) -> None:
    finding = checked(like_mlflow(version), server.check_version)
    assert finding.status == status
    assert f"server {version}, client {version_of('mlflow')}" in finding.found
    assert advice in finding.advice


@pytest.mark.parametrize("answer", [(500, "<h1>no database</h1>", HTML), (503, '{"error_code": "X"}', JSON)])
def test_a_failing_search(answer: servers.Reply) -> None:
    finding = checked(like_mlflow(search=answer), server.check_database)
    assert finding.status == "failed"
    assert f"/health answers, but a search of experiments fails: {answer[0]} " in finding.found
    assert "database" in finding.advice
    assert checked(like_mlflow(search=answer), server.check_answers).status == "ok"


def test_a_hanging_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "ANSWER_S", 0.5)

    def reply(path: str) -> servers.Reply:
        if "experiments" in path:
            time.sleep(1.5)
        return like_mlflow()(path)

    finding = checked(reply, server.check_database)
    assert finding.status == "failed"
    assert "sends no answer within" in finding.found


def test_a_server_with_hanging_workers_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "ANSWER_S", 0.3)

    def reply(path: str) -> servers.Reply:
        if not path.endswith("/health"):
            time.sleep(1.0)
        return like_mlflow()(path)

    with servers.speaking(reply) as url:
        contact = server.get_contact(url)
    assert server.check_answers(contact).status == "ok"
    assert server.check_database(contact).status == "failed"
    assert server.check_version(contact).status == "warning"


@pytest.mark.parametrize(
    ("off_s", "status", "words"),
    [
        (0, "ok", "agrees"),
        (-3, "ok", "agrees"),
        (60, "warning", "59 s behind|60 s behind"),
        (-60, "warning", "60 s ahead"),
        (-4000, "failed", "refused"),
    ],
)
def test_the_clock(off_s: float, status: str, words: str) -> None:
    headers = {"Date": formatdate(time.time() + off_s, usegmt=True)}
    finding = checked(like_mlflow(**headers), server.check_clock)
    assert finding.status == status
    assert any(each in finding.found for each in words.split("|")), finding.found
    assert ("NTP" in finding.advice) == (status != "ok")


def test_a_server_without_a_clock() -> None:
    assert checked(like_mlflow(Date="yesterday"), server.check_clock).status == "skipped"


def test_no_server() -> None:
    with pytest.raises(server.UnreachableError, match="refuses the connection") as caught:
        server.get_contact(f"http://{servers.unused()}")
    assert "start the server" in caught.value.advice


def test_an_endless_answer_is_truncated() -> None:
    with servers.speaking(always((200, "x" * 1_000_000, HTML))) as url:
        assert len(server.get_contact(url).health.text) == probe.MOST_CHARACTERS
