"""A small Kubernetes API server for the official client: HTTP on loopback, Jobs, pods and their logs in memory.

The test acts as controller and node: ``run_pod``, ``write``, ``end_pod``, ``finish_job``.
"""

from __future__ import annotations

import copy
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Object = dict[str, Any]
NAMESPACE = "cnn-jobs"
_PATH = re.compile(
    r"/(?:api/v1|apis/batch/v1)/namespaces/(?P<namespace>[^/]+)/(?P<kind>jobs|pods)(?:/(?P<name>[^/]+))?(?:/(?P<sub>log))?"
)


@dataclass
class Log:
    """Lines with their times; ``drop_after``: bytes after which each of the next connections is cut off."""

    lines: list[str] = field(default_factory=list)
    ended: bool = False
    drop_after: list[int] = field(default_factory=list)


class FakeApi:
    """The server. ``calls`` are (verb, resource) as in RBAC; ``faults`` are responses that replace others, each for one
    call that its function matches."""

    def __init__(self) -> None:
        self.jobs: dict[str, Object] = {}
        self.pods: dict[str, Object] = {}
        self.logs: dict[str, Log] = {}
        self.calls: list[tuple[str, str]] = []
        self.tokens: list[str] = []
        self.faults: list[tuple[Callable[[str, str], bool], int, Object]] = []
        self.groups = ["apps", "batch"]
        self.version = {"major": "1", "minor": "36", "gitVersion": "v1.36.0"}
        self.on_delete: Callable[[Object], object] = self.remove
        self.delete_options: list[Object] = []
        self.news = threading.Condition()
        self._made = 0
        fake = self

        class Handler(_Handler):
            api = fake

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def kubeconfig(self, path: Path, **user: Any) -> Path:
        """Writes a kubeconfig with this server as the context 'here'."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": user or {"token": "a-token"}}],
            "contexts": [{"name": "here", "context": {"cluster": "fake", "user": "me"}}],
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def fail(self, method: str, path: str, code: int, message: str, reason: str = "", times: int = 1) -> None:
        """The next calls of a method whose path contains ``path`` get a Status with this code."""
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
        body = {**status, "message": message, "reason": reason}
        self.faults += [(lambda m, p: m == method and path in p, code, body)] * times

    # -- controller and node ---------------------------------------------------------------------------------------

    def add_job(self, manifest: Object) -> Object:
        """Stores a Job; returns it as stored."""
        job = copy.deepcopy(manifest)
        job["metadata"].update(uid=str(uuid.uuid4()), creationTimestamp=self._now())
        job["spec"]["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": job["metadata"]["uid"]}}
        job["status"] = {}
        with self.news:
            self.jobs[job["metadata"]["name"]] = job
            self.news.notify_all()
        return job

    def run_pod(self, job: Object, index: int | None = None, *, running: bool = True, **status: Any) -> str:
        """Creates a pod of the Job; returns its name."""
        number = len(self.pods)
        name = f"{job['metadata']['name']}-{'' if index is None else f'{index}-'}p{number:04d}"
        template, uid = job["spec"]["template"], job["metadata"]["uid"]
        own = {"batch.kubernetes.io/controller-uid": uid, "batch.kubernetes.io/job-name": job["metadata"]["name"]}
        at = {"batch.kubernetes.io/job-completion-index": str(index)} if index is not None else {}
        container = template["spec"]["containers"][0]["name"]
        state = {"running": {"startedAt": self._now()}} if running else {"waiting": {"reason": "ContainerCreating"}}
        default = {
            "phase": "Running" if running else "Pending",
            "containerStatuses": [{"name": container, "restartCount": 0, "state": state}],
        }
        pod = {
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "creationTimestamp": self._now(),
                "labels": {**template["metadata"]["labels"], **own, **at},
                "annotations": at,
            },
            "spec": copy.deepcopy(template["spec"]),
            "status": {**default, **status},
        }
        with self.news:
            self.pods[name] = pod
            self.logs[name] = Log()
            job["status"].update(active=1, ready=int(running))
        return name

    def start_pod(self, name: str) -> None:
        """Starts the container of a pending pod."""
        status = self.pods[name]["status"]
        with self.news:
            status["phase"] = "Running"
            status["containerStatuses"][0]["state"] = {"running": {"startedAt": self._now()}}

    def write(self, pod: str, *texts: str, stamp: str = "") -> None:
        """Appends lines to a pod's log."""
        with self.news:
            for text in texts:
                self.logs[pod].lines.append(f"{stamp or self._precise()} {text}")
            self.news.notify_all()

    def end_pod(self, name: str, code: int = 0, reason: str = "", **more: Any) -> None:
        """Ends a pod's container."""
        pod = self.pods[name]
        ended = {"exitCode": code, "reason": reason or ("Error" if code else "Completed"), **more}
        with self.news:
            self.logs[name].ended = True
            pod["status"]["phase"] = "Failed" if code else "Succeeded"
            pod["status"]["containerStatuses"][0]["state"] = {"terminated": ended}
            self.news.notify_all()

    def finish_job(self, name: str, kind: str = "Complete", **more: str) -> None:
        """Sets a final condition of a Job."""
        self.jobs[name]["status"] = {"conditions": [{"type": kind, "status": "True", **more}]}

    def remove(self, job: Object) -> None:
        """Deletes a Job and its pods at once."""
        uid = job["metadata"]["uid"]
        with self.news:
            for name in [n for n, p in self.pods.items() if owner(p) == uid]:
                del self.pods[name]
                self.logs[name].ended = True
            self.jobs.pop(job["metadata"]["name"], None)
            self.news.notify_all()

    def _now(self) -> str:
        self._made += 1  # a second apart, so that there is an order
        return datetime.fromtimestamp(1_790_000_000 + self._made, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    @staticmethod
    def _precise() -> str:
        nanos = time.time_ns()
        return f"{datetime.fromtimestamp(nanos // 10**9, UTC):%Y-%m-%dT%H:%M:%S}.{nanos % 10**9:09d}Z"


def owner(pod: Object) -> str:
    """UID of a pod's Job."""
    return str(pod["metadata"]["labels"]["batch.kubernetes.io/controller-uid"])


@contextmanager
def fake_api() -> Iterator[FakeApi]:
    """A server during a block."""
    api = FakeApi()
    try:
        yield api
    finally:
        api.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: FakeApi

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        api, parts = self.api, urlsplit(self.path)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        api.tokens.append(self.headers.get("Authorization", ""))
        for each in api.faults:
            if each[0](method, parts.path):
                api.faults.remove(each)
                self._answer(each[1], each[2])
                return
        if parts.path.rstrip("/") == "/apis":
            groups = [{"name": name, "versions": [], "preferredVersion": None} for name in api.groups]
            self._answer(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
            return
        if parts.path.rstrip("/") == "/version":
            self._answer(200, api.version)
            return
        found = _PATH.fullmatch(parts.path)
        assert found, self.path
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        verb = {"POST": "create", "DELETE": "delete"}.get(method) or ("get" if found["name"] else "list")
        api.calls.append((verb, found["kind"] + (f"/{found['sub']}" if found["sub"] else "")))
        if found["namespace"] != NAMESPACE and method == "POST":
            self._refuse(404, f'namespaces "{found["namespace"]}" not found')
        elif found["sub"]:
            self._log(found["name"], query)
        elif method == "POST":
            self._create(body)
        elif found["name"]:
            self._one(method, found["kind"], found["name"], body)
        else:
            kept = self._store(found["kind"]) if found["namespace"] == NAMESPACE else {}
            items = [each for each in kept.values() if _selected(each, query.get("labelSelector", ""))]
            self._answer(200, {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items})

    def _store(self, kind: str) -> dict[str, Object]:
        return self.api.jobs if kind == "jobs" else self.api.pods

    def _create(self, body: Object) -> None:
        name = body["metadata"]["name"]
        if name in self.api.jobs:
            self._refuse(409, f'jobs.batch "{name}" already exists', "AlreadyExists")
            return
        self._answer(201, self.api.add_job(body))

    def _one(self, method: str, kind: str, name: str, body: Object) -> None:
        there = self._store(kind).get(name)
        if there is None:
            self._refuse(404, f'{kind}.batch "{name}" not found', "NotFound")
            return
        if method == "DELETE":
            self.api.delete_options.append(body)
            assert body["propagationPolicy"] == "Foreground"
            assert body["preconditions"]["uid"] == there["metadata"]["uid"]
            there["metadata"].setdefault("deletionTimestamp", "2026-11-25T00:00:00Z")
            self._answer(200, there)
            threading.Thread(target=self.api.on_delete, args=(there,), daemon=True).start()
            return
        self._answer(200, there)

    def _log(self, name: str, query: dict[str, str]) -> None:
        log = self.api.logs.get(name) if name in self.api.pods else None
        if log is None:
            self._refuse(404, f'pods "{name}" not found', "NotFound")
            return
        assert query["timestamps"] in ("true", "True")
        follow = query.get("follow") in ("true", "True")
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent, left = 0, log.drop_after.pop(0) if log.drop_after else None
        while True:
            with self.api.news:
                lines, ended = log.lines[sent:], log.ended
                sent += len(lines)
            data = "".join(f"{line}\n" for line in lines).encode()
            if left is not None and len(data) >= left:
                self._chunk(data[:left])
                self.close_connection = True
                self.connection.shutdown(2)
                return
            left = None if left is None else left - len(data)
            if data:
                self._chunk(data)
            if ended or not follow:
                self.wfile.write(b"0\r\n\r\n")
                return
            with self.api.news:
                self.api.news.wait(0.05)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _refuse(self, code: int, message: str, reason: str = "") -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
        self._answer(code, {**status, "message": message, "reason": reason})

    def _answer(self, code: int, body: Object) -> None:
        with self.api.news:
            data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _selected(each: Object, selector: str) -> bool:
    labels = each["metadata"].get("labels", {})
    if found := re.fullmatch(r"(\S+) in \((.*)\)", selector):
        return labels.get(found[1]) in found[2].split(",")
    return all(labels.get(k) == v for k, _, v in (part.partition("=") for part in selector.split(",") if part))
