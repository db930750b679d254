"""Reasons why a server cannot be reached, each caused on loopback."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import requests

from cnn_jobs.doctor import network
from tests.helpers import servers


def diagnosis(url: str, **settings: object) -> tuple[str, str]:
    """The diagnosis of a failing request."""
    with pytest.raises(requests.RequestException) as caught:
        requests.get(url, timeout=(1, 1), **settings)  # type: ignore[arg-type]
    return network.diagnose(caught.value, url)


def test_a_port_without_a_server() -> None:
    where = servers.unused()
    found, advice = diagnosis(f"http://{where}/health")
    assert found == f"{where} refuses the connection: nothing listens on that port"
    assert "start the server" in advice


def test_an_unknown_host_name() -> None:
    found, advice = diagnosis("http://no-such-host.invalid:5000/health")
    assert found.startswith("the name 'no-such-host.invalid' cannot be resolved (")
    assert "NAME.NAMESPACE.svc" in advice


def test_a_server_that_never_answers() -> None:
    with servers.silent() as where:
        found, advice = diagnosis(f"http://{where}")
    assert found == f"{where} accepts connections, but sends no answer within 5 s"
    assert "hangs" in advice


def test_dropped_packets() -> None:
    with servers.full() as where:
        found, advice = diagnosis(f"http://{where}")
        assert found == f"{where} does not accept a connection within 3 s"
        assert "NetworkPolicy" in advice
        assert network.reach(f"http://{where}", 0.3) == found


def test_a_server_that_closes_the_connection() -> None:
    with servers.hanging_up() as where:
        found, advice = diagnosis(f"http://{where}")
    assert found == f"{where} closes the connection without an answer"
    assert "https://" in advice


def test_a_certificate_of_an_unknown_authority(tmp_path: Path) -> None:
    path = servers.certificate(tmp_path / "server.pem")
    with servers.speaking(servers.like_mlflow(), path) as url:
        found, advice = diagnosis(url)
        assert "is not trusted (self-signed certificate)" in found
        assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in advice
        assert requests.get(f"{url}/health", timeout=5, verify=str(path)).text == "OK"


def test_https_to_an_http_server() -> None:
    with servers.speaking(servers.like_mlflow()) as url:
        found, advice = diagnosis(url.replace("http://", "https://"))
    assert "does not use TLS (" in found
    assert "http:// in place of https://" in advice


def test_an_unreachable_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{servers.unused()}")
    found, advice = diagnosis("http://mlflow.example:5000")
    assert found.startswith("the proxy of HTTP_PROXY does not lead to mlflow.example:5000 (")
    assert "add it to NO_PROXY" in advice


def test_reach_uses_the_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = servers.unused()
    assert "refuses the connection" in network.reach(f"http://{refused}")
    with servers.silent() as where:
        assert network.reach(f"http://{where}") == ""
        monkeypatch.setenv("HTTPS_PROXY", f"http://{where}")
        assert network.reach("https://no-such-host.invalid/file") == ""
    began = time.monotonic()
    monkeypatch.setenv("HTTPS_PROXY", f"http://{refused}")
    assert network.reach("https://no-such-host.invalid/file")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://host/x", "host:80"),
        ("https://host", "host:443"),
        ("http://me:secret@host:5000", "host:5000"),
        ("http://[::1]:5000", "[::1]:5000"),
    ],
)
def test_an_address_in_messages(url: str, shown: str) -> None:
    assert network.shown(url) == shown
