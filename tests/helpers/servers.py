"""Real sockets with real faults."""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Reply = tuple[int, str, Mapping[str, str]]
JSON = {"Content-Type": "application/json"}


@contextmanager
def speaking(reply: Callable[[str], Reply], certificate: Path | None = None, login: str = "") -> Iterator[str]:
    """The URL of an HTTP server on loopback that answers a path as ``reply`` says, to those with this ``user:password``
    alone where one is given."""
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

        do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that does not like the certificate leaves

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


def like_mlflow(version: str = "3.17.2", search: Reply = (200, "{}", JSON), **headers: str) -> Callable[[str], Reply]:
    """Answers /health, /version and the API as MLflow does; ``search`` is what a search of experiments gets."""

    def reply(path: str) -> Reply:
        if path.endswith("/health"):
            return 200, "OK", {"Content-Type": "text/plain", **headers}
        if path.endswith("/version"):
            return 200, version, {"Content-Type": "text/html"}
        return search

    return reply


@contextmanager
def silent() -> Iterator[str]:
    """``host:port`` of a socket to which one can connect, and where nobody ever reads or answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def dripping() -> Iterator[str]:
    """``host:port`` of a server that begins an answer and adds a byte now and then: no single wait is long."""
    ended = threading.Event()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)

        def serve() -> None:
            while not ended.is_set():
                connection, _ = listening.accept()
                threading.Thread(target=drip, args=(connection,)).start()

        def drip(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not ended.wait(0.5):
                    connection.sendall(b"x")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            ended.set()
            socket.create_connection(listening.getsockname()).close()
            thread.join()


@contextmanager
def full() -> Iterator[str]:
    """``host:port`` of a socket whose queue is full: Linux drops what asks for a connection, as a firewall does."""
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


@contextmanager
def hanging_up() -> Iterator[str]:
    """``host:port`` of a server that takes a connection and closes it."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                connection, _ = listening.accept()
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            ended.set()
            socket.create_connection(listening.getsockname()).close()
            thread.join()


def unused() -> str:
    """``host:port`` where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def certificate(path: Path) -> Path:
    """A certificate of 127.0.0.1, signed by itself, with its key, in one file."""
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
