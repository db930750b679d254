"""Artifacts of an experiment: where they are stored, and whether a file can be written and read back."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cnn_jobs.doctor import network
from cnn_jobs.doctor.finding import Finding, failed, ok, skipped, warning
from cnn_jobs.errors import first_line
from cnn_jobs.system.environment import in_pod

if TYPE_CHECKING:
    from cnn_jobs.tracking.probe import ProbeFile

SWITCHES = ("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD")
BEHIND_SERVER = "start the server with --artifacts-destination and without --default-artifact-root"
NEW_EXPERIMENT = f"{BEHIND_SERVER}, then choose a new --experiment: its artifact location is fixed when it is created"


@dataclass(frozen=True)
class Exchange:
    """A file sent to an experiment's artifact location. ``fault``: what failed first; ``left``: why it could not be
    deleted; ``store``: the object store behind the server; ``direct``: why it could not be fetched from there. Each is
    "" if there is none."""

    location: str
    exists: bool
    fault: str = ""
    left: str = ""
    store: str = ""
    direct: str = ""

    @property
    def proxied(self) -> bool:
        """Whether artifacts go through the MLflow server."""
        return urlsplit(self.location).scheme == "mlflow-artifacts"

    @property
    def is_folder(self) -> bool:
        """Whether the location is a path of this machine, even if a server means its own."""
        return urlsplit(self.location).scheme in ("", "file")


def exchange(uri: str, experiment: str) -> Exchange:
    """Writes, reads and deletes a small file at the experiment's artifact location; creates no run or experiment."""
    from cnn_jobs.tracking import probe

    try:
        location, exists = probe.artifact_location(uri, experiment)
        done = Exchange(location, exists)
        if not location or _is_folder_elsewhere(done, uri):
            return done
        file = probe.ProbeFile(uri, location)
    except Exception as error:  # of MLflow's client, or of the database
        return Exchange("", False, f"their location cannot be determined ({_reason(error, uri)})")
    fault = _write_and_read(file, uri)
    store, direct = _fetch_directly(file, uri) if done.proxied and not fault else ("", "")
    try:
        file.delete()
        left = ""
    except Exception as error:  # of requests, boto3, a disk, or MLflow
        left = _reason(error, uri)
    return Exchange(location, exists, fault, left, store, direct)


def check_artifacts(done: Exchange, uri: str, experiment: str) -> Finding:
    """A file can be written to the artifact location and read back, by a way that suits a cluster."""
    if not done.location:
        advice = "look at the server's log, or check the database"
        return failed(done.fault, advice) if done.fault else skipped("no experiment has an artifact location")
    place = done.location if done.exists else f"{done.location} (of 'Default': '{experiment}' does not exist yet)"
    if _is_folder_elsewhere(done, uri):
        found = f"{place} is a folder: files would be written on this machine, not on the server"
        return failed(found, NEW_EXPERIMENT) if done.exists else warning(found, BEHIND_SERVER)
    if done.fault:
        return failed(f"{place}: a file {done.fault}", _remedy(done, uri))
    if done.left:
        return warning(
            f"{place}: written and read back, but not deleted ({done.left})",
            "training does not need that; delete the folder doctor-* there by hand",
        )
    if done.proxied:
        return ok(f"{place}: written and read back through the server")
    if done.is_folder and not uri.startswith("http"):
        return ok(f"{place}: written and read back, on this machine")
    if done.is_folder:
        return warning(
            f"{place} is a folder of this machine, written and read back: right only if the server runs here, too",
            NEW_EXPERIMENT,
        )
    return warning(
        f"{place}: written and read back, but directly: every machine that trains needs keys for it",
        NEW_EXPERIMENT if uri.startswith("http") else "run an MLflow server that keeps the keys",
    )


def check_presigned(done: Exchange) -> Finding:
    """Whether clients bypass the server, which is MLflow's default where the store is S3."""
    if done.fault:
        return skipped("no file could be written and read back")
    if not done.proxied:
        return skipped("artifacts do not go through a server")
    on = [name for name in SWITCHES if os.environ.get(name, "").lower() in ("true", "1")]
    if not done.store:
        return ok("the server issues no addresses of its store: everything goes through it")
    if not on:
        state = f"cannot ({done.direct})" if done.direct else "could"
        return ok(f"off: files go through the server; from here they {state} be fetched from {done.store}")
    if done.direct:
        return failed(
            f"{' and '.join(on)} sends clients to {done.store}, and there: {done.direct}",
            f"set {'=false and '.join(on)}=false: then files go through the server",
        )
    return ok(f"on: files come directly from {done.store}")


def _write_and_read(file: ProbeFile, uri: str) -> str:
    """What failed, "" for nothing."""
    doing = "written"
    try:
        file.write()
        doing = "read back"
        return "" if file.read() == file.content else "is read back with another content"
    except Exception as error:  # of requests, boto3, a disk, or MLflow
        return f"cannot be {doing} ({_reason(error, uri)})"


def _fetch_directly(file: ProbeFile, uri: str) -> tuple[str, str]:
    """Address of the store, "" if the server issues none, and why the file cannot be fetched from there."""
    import requests

    try:
        url, headers = file.presigned()
    except Exception as error:  # of requests or MLflow
        return "the server's store", f"its address cannot be obtained ({_reason(error, uri)})"
    if not url:
        return "", ""
    store = f"{urlsplit(url).scheme}://{network.shown(url)}"
    timeout = (network.CONNECT_S, network.ANSWER_S)
    try:
        with requests.get(url, headers=headers, timeout=timeout, stream=True) as response:
            if response.status_code != 200:
                return store, f"it answers {response.status_code}"
            same = next(response.iter_content(len(file.content) + 1), b"") == file.content
            return store, "" if same else "it sends another file"
    except requests.RequestException as error:
        return store, network.diagnose(error, url)[0]


def _is_folder_elsewhere(done: Exchange, uri: str) -> bool:
    """Whether the location is a path on the disk of another machine's server."""
    return done.is_folder and uri.startswith("http") and not network.is_loopback(uri)


def _remedy(done: Exchange, uri: str) -> str:
    if done.proxied and not uri.startswith("http"):
        return "these artifacts are behind a server: set MLFLOW_TRACKING_URI to its http:// address"
    if done.proxied:
        return "look at the server's log: its --artifacts-destination must be writable, and its keys for that valid"
    if done.is_folder:
        return "make the folder writable, or run an MLflow server"
    if in_pod():
        return f"pods should hold no keys: {NEW_EXPERIMENT}"
    return f"set the keys for {urlsplit(done.location).scheme}:// here, or {NEW_EXPERIMENT}"


def _reason(error: Exception, uri: str) -> str:
    from cnn_jobs.tracking.connection import explain, http_status

    return first_line(error) if http_status(error) is None else explain(error, uri)
