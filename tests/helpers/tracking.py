"""A recorder with a folder of its own, what MLflow then has, and servers that answer wrongly or not at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cnn_jobs.tracking import run_status
from cnn_jobs.tracking.document_run import open_recorder
from cnn_jobs.tracking.recorder import JournalRecorder
from cnn_jobs.tracking.records import RunHeader, now_ms
from cnn_jobs.tracking.run_folder import RunFolder
from tests.helpers.runs import client


def header(key: str = "key", **changes: Any) -> RunHeader:
    """A run of the experiment ``tests``."""
    values = {"experiment": "tests", "run_key": key, "name": "a run", "start_ms": now_ms(), "tags": {}, **changes}
    return RunHeader(**values)


@contextmanager
def recording(uri: str, folder: Path, key: str = "key", **changes: Any) -> Iterator[JournalRecorder]:
    """A started recorder; its folder is released at the end."""
    with RunFolder(folder / key) as run_folder:
        recorder = open_recorder(run_folder, uri, header(key, **changes))
        recorder.start(contact_s=30)
        yield recorder


def finish(recorder: JournalRecorder, deadline_s: float = 30.0) -> bool:
    """Finishes a complete run."""
    return recorder.finish(run_status.finished(), deadline_s)


def rows(uri: str, run_id: str, key: str = "train/loss") -> list[tuple[int, float]]:
    """(step, value) of a metric, as MLflow has them."""
    return sorted((point.step, point.value) for point in client(uri).get_metric_history(run_id, key))


@contextmanager
def answering(status: int, body: str = "no", content_type: str = "text/plain") -> Iterator[str]:
    """A real HTTP server on loopback that gives every request the same answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_PATCH = do_PUT = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def unused_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
