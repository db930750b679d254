"""An HTTP proxy between an MLflow client and a real server that injects faults by a schedule."""

from __future__ import annotations

import contextlib
import fcntl
import random
import socket
import socketserver
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from http.client import HTTPConnection, HTTPException, responses
from http.server import BaseHTTPRequestHandler
from typing import Any


class Fault(Enum):
    """What happens to a request. A reset closes the connection by RST: the client gets ECONNRESET."""

    PASS = auto()  # forwarded and answered
    RESET_BEFORE = auto()  # reset, not forwarded
    RESET_AFTER = auto()  # forwarded, reset in place of the answer: it took effect, unknown to the client
    ERROR_500 = auto()  # an HTML page, not forwarded
    ERROR_500_AFTER = auto()  # forwarded, the page in place of the answer
    ERROR_503 = auto()  # not forwarded
    TOO_MANY = auto()  # 429 with ``Retry-After: 1``, not forwarded
    HANG = auto()  # not forwarded; no answer for ``hang_s`` or until the proxy closes, then reset
    HANG_AFTER = auto()  # forwarded and answered by the upstream, then as HANG
    HALF_ANSWER = auto()  # forwarded; headers and half the body, then reset. An answer without a body is complete
    BAD_REQUEST = auto()  # 400 with MLflow's INVALID_PARAMETER_VALUE, not forwarded


@dataclass(frozen=True)
class Request:
    """A request: its number in order of arrival, from 0, and its target with the query."""

    number: int
    method: str
    path: str


Schedule = Callable[[Request], Fault]
_Answer = tuple[int, list[tuple[str, str]], bytes]  # status, headers, body
_HTML, _PAGE = ("Content-Type", "text/html"), b"<!doctype html><title>Error</title><h1>A fault of the proxy</h1>"
_BAD_PARAMETER = b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "A fault of the proxy"}'
_CANNED: dict[Fault, _Answer] = {
    Fault.ERROR_500: (500, [_HTML], _PAGE),
    Fault.ERROR_503: (503, [_HTML], _PAGE),
    Fault.TOO_MANY: (429, [_HTML, ("Retry-After", "1")], _PAGE),
    Fault.BAD_REQUEST: (400, [("Content-Type", "application/json")], _BAD_PARAMETER),
}
# RFC 9110, 7.6.1: they belong to the connection. Host, too: MLflow answers 403 to any but its own.
_HOP_BY_HOP = {"connection", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}


def random_schedule(seed: int, *, rate: float, faults: Sequence[Fault]) -> Schedule:
    """One of ``faults`` with probability ``rate``, else PASS; depends only on ``seed`` and the request's number."""

    def schedule(request: Request) -> Fault:
        draw = random.Random(f"{seed}/{request.number}")
        return draw.choice(faults) if draw.random() < rate else Fault.PASS

    return schedule


class FaultProxy(socketserver.ThreadingTCPServer):
    """Serves on ``url`` until ``close()``; ``upstream``, ``schedule`` and ``hang_s`` may be set while it serves.

    A request is scheduled, logged and forwarded once all of it has arrived; only one at a time is scheduled. Where the
    upstream refuses or breaks off, the client's connection is reset.
    """

    daemon_threads = True
    request_queue_size = 128
    read_shutdown_s = 1.0  # how long ``close`` only wakes threads that read

    def __init__(self, upstream: tuple[str, int], schedule: Schedule | None = None, *, hang_s: float = 2.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url, self.upstream, self.hang_s = f"http://127.0.0.1:{self.server_address[1]}", upstream, hang_s
        self.schedule: Schedule = schedule or (lambda _: Fault.PASS)
        self.log: list[tuple[Request, Fault]] = []  # what was scheduled; a request's number is its index
        self.scheduling, self.closing = threading.Lock(), threading.Event()
        self.connections: set[socket.socket] = set()  # open ones, to clients and to the upstream
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops listening and ends every connection; one with a request in progress is reset."""
        self.closing.set()
        self.shutdown()
        self.server_close()
        began = time.monotonic()
        while self.connections and (waited_s := time.monotonic() - began) < 5:
            for connection in tuple(self.connections):
                with contextlib.suppress(OSError):
                    # SHUT_RD wakes a thread that reads, without a FIN before the RST; a thread that writes needs more.
                    connection.shutdown(socket.SHUT_RD if waited_s < self.read_shutdown_s else socket.SHUT_RDWR)
            time.sleep(0.005)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        request.close()  # socketserver's own sends a FIN, and then no RST
        self.connections.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that disconnects is not an error
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FaultProxy

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # any method
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
        body = self._chunks() if chunked else self._exactly(int(self.headers.get("Content-Length", 0))) or None
        with self.server.scheduling:
            request = Request(len(self.server.log), self.command, self.path)
            fault = self.server.schedule(request)
            self.server.log.append((request, fault))
        if fault in _CANNED:
            return self._send(_CANNED[fault])
        if fault not in (Fault.RESET_BEFORE, Fault.HANG):
            try:
                answer = self._forward(body, chunked)
            except (OSError, HTTPException):
                return self._reset()
            if fault in (Fault.PASS, Fault.ERROR_500_AFTER):
                return self._send(answer if fault is Fault.PASS else _CANNED[Fault.ERROR_500])
            if fault is Fault.HALF_ANSWER:
                self._send(answer, half=True)
        if fault in (Fault.HANG, Fault.HANG_AFTER):
            self.server.closing.wait(self.server.hang_s)
        return self._reset()

    def _exactly(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionError("the client disconnected within its request")
        return data

    def _chunks(self) -> bytes:
        body = bytearray()
        while size := int((self.rfile.readline() or self._exactly(1)).partition(b";")[0], 16):
            body += self._exactly(size + 2)[:-2]
        while self.rfile.readline().strip():  # trailers
            pass
        return bytes(body)

    def _forward(self, body: bytes | None, chunked: bool) -> _Answer:
        host, port = self.server.upstream
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        # A new connection each time: one that the server closes as idle would be an unscheduled fault.
        headers |= {"Host": f"{host}:{port}", "Connection": "close"}
        headers |= {"Transfer-Encoding": "chunked"} if chunked else {}
        with contextlib.closing(HTTPConnection(host, port)) as upstream:
            upstream.connect()
            connection = upstream.sock
            self.server.connections.add(connection)
            try:
                upstream.request(self.command, self.path, body, headers, encode_chunked=chunked)
                with upstream.getresponse() as response:
                    kept = [header for header in response.getheaders() if header[0].lower() not in _HOP_BY_HOP]
                    return response.status, kept, response.read()
            finally:
                self.server.connections.discard(connection)

    def _send(self, answer: _Answer, *, half: bool = False) -> None:
        status, headers, body = answer
        sized = any(name.lower() == "content-length" for name, _ in headers)
        if not sized and self.command != "HEAD" and status not in (204, 304):
            headers = [*headers, ("Content-Length", str(len(body)))]
        head = [f"HTTP/1.1 {status} {responses.get(status, '')}", *(f"{name}: {value}" for name, value in headers)]
        sent = body[: len(body) // 2 if half else None] if self.command != "HEAD" else b""
        self.wfile.write("\r\n".join([*head, "\r\n"]).encode("latin-1") + sent)
        with contextlib.suppress(OSError):  # not every system supports this for a socket
            for _ in range(1000 * half):  # a reset discards what the kernel has not sent yet
                if any(fcntl.ioctl(self.connection, termios.TIOCOUTQ, bytes(4))):
                    time.sleep(0.001)

    def _reset(self) -> None:
        self.close_connection = True  # with RST, when ``shutdown_request`` closes it
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
