"""Servers on loopback with faults."""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cnn_jobs.local_server.server import free_port

Reply = tuple[int, str, Mapping[str, str]]
JSON = {"Content-Type": "application/json"}


@contextmanager
def speaking(reply: Callable[[str], Reply], certificate: Path | None = None, login: str = "") -> Iterator[str]:
    """The URL of an HTTP server that answers each path with ``reply``; with ``login`` (``user:password``), only to
    requests that have it."""
    wanted = f"Basic {base64.b64encode(login.encode()).decode()}"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body, headers = reply(self.path)
            if login and self.headers.get("Authorization") != wanted and "/experiments/" in self.path:
                status, body, headers = 401, "You are not authenticated.", {"WWW-Authenticate": 'Basic realm="mlflow"'}
            self.send_response_only(status)
            for name, value in {"Date": formatdate(usegmt=True), **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that rejects the certificate disconnects

    server = Server(("127.0.0.1", 0), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def sending(answer: Callable[[str], tuple[int, bytes]], length: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """The URL of an HTTP server that answers each path with a status and bytes, and the methods of its requests. It
    announces ``length`` bytes, however many it sends."""
    methods: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            methods.append(self.command)
            status, body = answer(self.path)
            self.send_response(status)
            self.send_header("ETag", '"abc"')
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", methods
        finally:
            server.shutdown()
            thread.join()


def answering(status: int, body: str = "no", content_type: str = "text/plain") -> AbstractContextManager[str]:
    """The URL of an HTTP server that gives every request the same answer."""
    return speaking(lambda path: (status, body, {"Content-Type": content_type}))


def like_mlflow(version: str = "3.17.2", search: Reply = (200, "{}", JSON), **headers: str) -> Callable[[str], Reply]:
    """The replies of an MLflow server; ``search`` is that to a search of experiments."""

    def reply(path: str) -> Reply:
        if path.endswith("/health"):
            return 200, "OK", {"Content-Type": "text/plain", **headers}
        if path.endswith("/version"):
            return 200, version, {"Content-Type": "text/html"}
        return search

    return reply


@contextmanager
def silent() -> Iterator[str]:
    """``host:port`` of a socket that accepts connections, but never reads or answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def _accepting(serve: Callable[[socket.socket], object]) -> Iterator[str]:
    """``host:port`` of a server that calls ``serve`` with each connection, in a thread."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while not ended.is_set():
                connection, _ = listening.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            ended.set()
            socket.create_connection(listening.getsockname()).close()
            thread.join()


@contextmanager
def dripping() -> Iterator[str]:
    """``host:port`` of a server that sends an endless answer byte by byte, so that no read times out."""
    ended = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not ended.wait(0.5):
                connection.sendall(b"x")

    try:
        with _accepting(drip) as where:
            yield where
    finally:
        ended.set()


def hanging_up() -> AbstractContextManager[str]:
    """``host:port`` of a server that closes each connection."""
    return _accepting(socket.socket.close)


@contextmanager
def full() -> Iterator[str]:
    """``host:port`` of a socket with a full queue: Linux drops connection requests, as a firewall does."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(listening.getsockname())
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            for each in waiting:
                each.close()


def unused() -> str:
    """``host:port`` where nothing listens."""
    return f"127.0.0.1:{free_port()}"


def unused_url() -> str:
    """An ``http:`` URL where nothing listens."""
    return f"http://{unused()}"


def certificate(path: Path) -> Path:
    """A self-signed certificate of 127.0.0.1 and its key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "doctor's test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path
