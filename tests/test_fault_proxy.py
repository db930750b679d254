"""The fault proxy, with a ``requests`` client and with a real MLflow server."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from cnn_jobs.local_server.server import start_server, stop_server
from tests.helpers.fault_proxy import Fault, FaultProxy, Request, random_schedule


class Received(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Upstream(ThreadingHTTPServer):
    """Answers with the body of the request and its size in X-Size; keeps requests in ``received``."""

    request_queue_size = 64

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.meeting: threading.Barrier | None = None  # answers once so many requests have arrived
        self.release: threading.Event | None = None  # answers once it is set
        self.answers_chunked = False
        super().__init__(("127.0.0.1", 0), Echo)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server_port


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Upstream

    def answer(self) -> None:
        body = self.chunks() if self.headers["Transfer-Encoding"] else self.rfile.read(self.size())
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.received.append(Received(self.command, self.path, headers, body))
        if self.server.meeting is not None:
            self.server.meeting.wait(10)
        if self.server.release is not None:
            self.server.release.wait(10)
        self.send_response(204 if self.command == "DELETE" else 201)
        self.send_header("X-Size", str(len(body)))
        if self.server.answers_chunked:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        elif self.command != "DELETE":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_PROPFIND = answer  # noqa: N815

    def size(self) -> int:
        return int(self.headers["Content-Length"] or 0)

    def chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[Upstream]:
    with Upstream() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with serving() as server:
        yield server


@pytest.fixture
def proxy(upstream: Upstream) -> Iterator[FaultProxy]:
    with FaultProxy(upstream.address) as proxy:
        yield proxy


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False  # not through the machine's proxy
        yield session


def always(fault: Fault) -> Any:
    return lambda _: fault


def is_reset(error: BaseException) -> bool:
    """Whether the client got ECONNRESET, not an orderly end (urllib3: RemoteDisconnected)."""
    chain = [error]
    while chain[-1].args and isinstance(chain[-1].args[-1], BaseException):
        chain.append(chain[-1].args[-1])
    return type(chain[-1]) is ConnectionResetError


def seconds_to_reset(session: requests.Session, url: str) -> float:
    began = time.monotonic()
    with pytest.raises(requests.ConnectionError) as caught:
        session.post(url, data=b"some", timeout=10)
    assert is_reset(caught.value)
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("fault", "forwarded"),
    [(Fault.RESET_BEFORE, False), (Fault.RESET_AFTER, True), (Fault.HANG, False), (Fault.HANG_AFTER, True)],
)
def test_reset_and_hang_give_no_answer(
    proxy: FaultProxy, upstream: Upstream, session: requests.Session, fault: Fault, forwarded: bool
) -> None:
    hangs = fault in (Fault.HANG, Fault.HANG_AFTER)
    proxy.schedule, proxy.hang_s = always(fault), 0.2 if hangs else 60
    waited_s = seconds_to_reset(session, proxy.url)
    assert waited_s >= 0.2 if hangs else waited_s < 10
    assert [request.body for request in upstream.received] == [b"some"] * forwarded
    proxy.schedule = always(Fault.PASS)
    assert session.post(proxy.url, data=b"again", timeout=10).content == b"again"


def test_close_ends_a_hang(proxy: FaultProxy, session: requests.Session) -> None:
    proxy.hang_s = 60
    proxy.schedule = always(Fault.HANG)
    with pytest.raises(requests.ReadTimeout):
        session.get(proxy.url, timeout=0.1)
    began = time.monotonic()
    proxy.close()
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("fault", "status", "forwarded"),
    [
        (Fault.ERROR_500, 500, False),
        (Fault.ERROR_500_AFTER, 500, True),
        (Fault.ERROR_503, 503, False),
        (Fault.TOO_MANY, 429, False),
        (Fault.BAD_REQUEST, 400, False),
    ],
)
def test_error_is_an_answer(
    proxy: FaultProxy, upstream: Upstream, session: requests.Session, fault: Fault, status: int, forwarded: bool
) -> None:
    proxy.schedule = always(fault)
    answer = session.post(proxy.url, data=b"some", timeout=10)
    assert answer.status_code == status
    assert [request.body for request in upstream.received] == [b"some"] * forwarded
    assert answer.headers.get("Retry-After") == ("1" if fault is Fault.TOO_MANY else None)
    if fault is Fault.BAD_REQUEST:
        assert answer.json()["error_code"] == "INVALID_PARAMETER_VALUE"
    else:
        assert answer.headers["Content-Type"] == "text/html"
        assert answer.text.startswith("<!doctype html>")
    assert session.head(proxy.url, timeout=10).status_code == status


def read_until_reset(client: socket.socket) -> bytes:
    data = bytearray()
    with pytest.raises(ConnectionResetError):  # noqa: PT012
        while part := client.recv(20_000):
            data += part
    return bytes(data)


@pytest.mark.parametrize("size", [1, 1001, 5_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_half_answer_has_all_headers_and_half_the_body(
    proxy: FaultProxy, upstream: Upstream, session: requests.Session, size: int, chunked: bool
) -> None:
    upstream.answers_chunked = chunked
    proxy.schedule = always(Fault.HALF_ANSWER)
    body = os.urandom(size)
    with socket.create_connection(proxy.server_address, timeout=10) as client:
        client.sendall(b"PUT / HTTP/1.1\r\nHost: any\r\nContent-Length: %d\r\n\r\n" % size + body)
        head, _, half = read_until_reset(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 201 Created\r\n")
    assert b"X-Size: %d\r\n" % size in head
    assert b"Content-Length: %d" % size in head
    assert half == body[: size // 2]
    with pytest.raises(requests.exceptions.ChunkedEncodingError) as caught:
        session.put(proxy.url, data=body, timeout=10)
    assert is_reset(caught.value)
    assert [request.body for request in upstream.received] == [body, body]


def test_half_answer_without_a_body_has_its_headers(proxy: FaultProxy) -> None:
    proxy.schedule = always(Fault.HALF_ANSWER)
    with socket.create_connection(proxy.server_address) as client:
        client.sendall(b"DELETE / HTTP/1.1\r\nHost: any\r\n\r\n")
        answer = read_until_reset(client)
    assert answer.startswith(b"HTTP/1.1 204 No Content\r\n")
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
def test_any_method_passes_unchanged(
    proxy: FaultProxy, upstream: Upstream, session: requests.Session, method: str
) -> None:
    body = {} if method in ("GET", "HEAD", "DELETE") else {"data": b"\0some\xff"}
    direct = session.request(method, f"http://localhost:{upstream.server_port}/a%20b?c=d&e", timeout=10, **body)
    passed = session.request(method, f"{proxy.url}/a%20b?c=d&e", timeout=10, headers={"X-Own": "é"}, **body)
    first, second = upstream.received
    assert (second.method, second.path, second.body) == (first.method, first.path, first.body) == (
        method, "/a%20b?c=d&e", body.get("data", b""),
    )  # fmt: skip
    assert second.headers.pop("host") == f"127.0.0.1:{upstream.server_port}", "MLflow accepts no other"
    assert second.headers.pop("x-own") == "é"
    assert {**second.headers, "connection": "", "host": ""} == {**first.headers, "connection": "", "host": ""}
    assert (passed.status_code, passed.content) == (direct.status_code, direct.content)
    assert {**passed.headers, "Date": ""} == {**direct.headers, "Date": ""}


def test_connection_stays_open_after_answers(proxy: FaultProxy) -> None:
    faults = [Fault.PASS, Fault.ERROR_500, Fault.TOO_MANY, Fault.ERROR_500_AFTER, Fault.BAD_REQUEST, Fault.PASS]
    proxy.schedule = lambda request: faults[request.number // 2]
    with contextlib.closing(http.client.HTTPConnection(*proxy.server_address, timeout=10)) as client:
        client.connect()
        first = client.sock
        statuses = []
        for method in ("POST", "HEAD") * len(faults):
            client.request(method, "/", b"x" * 100_000)
            with client.getresponse() as answer:
                answer.read()
                statuses.append(answer.status)
        assert client.sock is first
    assert statuses[::2] == statuses[1::2] == [201, 500, 429, 500, 400, 201]


@pytest.mark.parametrize("fault", [Fault.PASS, Fault.ERROR_500, Fault.ERROR_500_AFTER, Fault.BAD_REQUEST])
def test_answer_to_head_has_no_body(proxy: FaultProxy, fault: Fault) -> None:
    proxy.schedule = always(fault)
    with socket.create_connection(proxy.server_address, timeout=10) as client:
        client.sendall(b"HEAD / HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n")
        with client.makefile("rb") as answer:  # http.client would discard a body
            assert answer.read().partition(b"\r\n\r\n")[1:] == (b"\r\n\r\n", b"")


@pytest.mark.parametrize("size", [0, 5_000_000])
def test_chunked_bodies_pass_unchanged(
    proxy: FaultProxy, upstream: Upstream, session: requests.Session, size: int
) -> None:
    body = os.urandom(size)
    assert session.put(proxy.url, data=body, timeout=10).content == body
    upstream.answers_chunked = True
    assert session.put(proxy.url, data=(body[at : at + 70_000] for at in range(0, size, 70_000))).content == body
    sized, chunked = upstream.received
    assert sized.body == chunked.body == body
    assert sized.headers["content-length"] == str(size)
    assert chunked.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in chunked.headers


@pytest.mark.parametrize("head", [b"Content-Length: 10\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\na\r\nhalf"])
def test_incomplete_request_is_not_forwarded(
    proxy: FaultProxy, upstream: Upstream, session: requests.Session, head: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(proxy.server_address) as client:
        client.sendall(b"PUT / HTTP/1.1\r\nHost: any\r\n" + head)
    with socket.create_connection(proxy.server_address) as client:
        client.sendall(b"PUT / HTTP/1.1\r\nHost: any\r\n" + head)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert session.get(proxy.url, timeout=10).status_code == 201
    assert [request.method for request, _ in proxy.log] == [request.method for request in upstream.received] == ["GET"]
    assert capsys.readouterr().err == ""


def test_connections_are_served_concurrently(proxy: FaultProxy, upstream: Upstream) -> None:
    upstream.meeting = threading.Barrier(16)

    def put(number: int) -> bytes:
        return requests.put(f"{proxy.url}/{number}", data=b"%d" % number, timeout=20).content

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(put, range(32))) == [b"%d" % number for number in range(32)]
    assert [request.number for request, _ in proxy.log] == list(range(32))
    assert {request.path for request, _ in proxy.log} == {f"/{number}" for number in range(32)}


def test_upstream_can_be_replaced(session: requests.Session) -> None:
    with serving() as first, FaultProxy(first.address) as proxy:
        assert session.post(proxy.url, data=b"1", timeout=10).content == b"1"
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))  # does not listen: connections are refused
            proxy.upstream = bound.getsockname()
            seconds_to_reset(session, proxy.url)
        with serving() as second:
            proxy.upstream = second.address
            assert session.post(proxy.url, data=b"2", timeout=10).content == b"2"
            assert [request.body for request in second.received] == [b"2"]
        assert [request.body for request in first.received] == [b"1"]


def test_upstream_that_breaks_off_resets_the_client(session: requests.Session) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, FaultProxy(listening.getsockname()) as proxy:

        def break_off() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")

        thread = threading.Thread(target=break_off)
        thread.start()
        seconds_to_reset(session, proxy.url)
        thread.join()


def test_log_has_requests_and_faults(proxy: FaultProxy, session: requests.Session) -> None:
    proxy.schedule = lambda request: Fault.ERROR_503 if request.path == "/b?c" else Fault.PASS
    session.get(f"{proxy.url}/a", timeout=10)
    session.put(f"{proxy.url}/b?c", timeout=10)
    proxy.schedule = always(Fault.RESET_AFTER)
    seconds_to_reset(session, f"{proxy.url}/a")
    assert proxy.log == [
        (Request(0, "GET", "/a"), Fault.PASS),
        (Request(1, "PUT", "/b?c"), Fault.ERROR_503),
        (Request(2, "POST", "/a"), Fault.RESET_AFTER),
    ]


def test_close_ends_every_connection(upstream: Upstream, session: requests.Session) -> None:
    upstream.release = threading.Event()
    with (
        FaultProxy(upstream.address, lambda request: Fault[request.path[1:]], hang_s=60) as proxy,
        ThreadPoolExecutor(2) as pool,
        socket.create_connection(proxy.server_address, timeout=10) as idle,
    ):
        hanging = pool.submit(seconds_to_reset, session, f"{proxy.url}/HANG")
        passing = pool.submit(seconds_to_reset, session, f"{proxy.url}/PASS")
        while len(proxy.log) < 2 or not upstream.received:
            time.sleep(0.01)
        began = time.monotonic()
        proxy.close()
        assert time.monotonic() - began < 4
        assert not proxy.connections
        assert hanging.result() < 10
        assert passing.result() < 10
        assert idle.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(proxy.server_address)
        proxy.close()
        upstream.release.set()


def test_close_does_not_wait_for_a_client_that_does_not_read(upstream: Upstream) -> None:
    body = bytes(30_000_000)  # more than the kernel's buffers
    with FaultProxy(upstream.address) as proxy, socket.create_connection(proxy.server_address) as client:
        proxy.read_shutdown_s = 0.1
        client.sendall(b"PUT / HTTP/1.1\r\nHost: any\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        client.recv(1)
        proxy.close()
        assert not proxy.connections


def test_random_faults_are_repeatable_with_the_given_rate() -> None:
    faults = (Fault.RESET_AFTER, Fault.ERROR_503)

    def draw(seed: int, rate: float) -> list[Fault]:
        schedule = random_schedule(seed, rate=rate, faults=faults)
        return [schedule(Request(number, "GET", "/")) for number in range(1000)]

    assert draw(1, 0.3) == draw(1, 0.3)
    assert draw(1, 0.3) != draw(2, 0.3)
    assert draw(1, 0) == [Fault.PASS] * 1000
    for fault in faults:
        assert 100 < draw(1, 0.3).count(fault) < 200
        assert 400 < draw(1, 1).count(fault) < 600


@pytest.mark.integration
@pytest.mark.filterwarnings("default")
def test_mlflow_works_through_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the proxy alone makes faults
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    artifact = tmp_path / "weights.bin"
    artifact.write_bytes(os.urandom(3_000_000))
    (tmp_path / "got").mkdir()
    server = start_server(tmp_path / "server")
    try:
        with FaultProxy(("127.0.0.1", server.port)) as proxy:
            client = MlflowClient(proxy.url)
            run_id = client.create_run("0").info.run_id
            client.log_batch(run_id, [Metric("loss", 0.5, 1, 1), Metric("loss", 0.25, 2, 2)])
            client.log_artifact(run_id, str(artifact), "model")
            got = client.download_artifacts(run_id, "model/weights.bin", str(tmp_path / "got"))
            assert Path(got).read_bytes() == artifact.read_bytes()
            direct = MlflowClient(server.url)
            assert [point.value for point in direct.get_metric_history(run_id, "loss")] == [0.5, 0.25]
            sent = [(request.method, request.path.rpartition("/")[2]) for request, _ in proxy.log]
            assert sent[:2] == [("POST", "create"), ("POST", "log-batch")]
            assert {("PUT", "weights.bin"), ("GET", "weights.bin")} <= set(sent)

            proxy.schedule = always(Fault.BAD_REQUEST)
            with pytest.raises(MlflowException) as caught:
                client.log_batch(run_id, [Metric("loss", 9, 3, 3)])
            assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
            proxy.schedule = always(Fault.RESET_AFTER)
            with pytest.raises(MlflowException):
                client.log_batch(run_id, [Metric("loss", 0.125, 4, 4)])
            assert [point.step for point in direct.get_metric_history(run_id, "loss")] == [1, 2, 4]
    finally:
        stop_server(tmp_path / "server")
