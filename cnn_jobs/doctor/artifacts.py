"""Artifacts: where they go, whether a file goes there and comes back, and whether by way of the server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cnn_jobs.doctor import network
from cnn_jobs.doctor.finding import Finding, failed, ok, skipped, warning
from cnn_jobs.environment import in_pod

if TYPE_CHECKING:
    from cnn_jobs.tracking.probe import ProbeFile

SWITCHES = ("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD")
BEHIND_SERVER = "start the server with --artifacts-destination and without --default-artifact-root"
NEW_EXPERIMENT = (
    f"{BEHIND_SERVER}, then choose a new --experiment: where the artifacts of one go is fixed when it is made"
)


@dataclass(frozen=True)
class Exchange:
    """A file sent to an experiment's artifacts. ``fault``: what failed first, "" for nothing; ``left``: why it could
    not be deleted; ``direct``: how an attempt to fetch it past the server ended, ``store`` the address of that."""

    location: str
    exists: bool
    fault: str = ""
    left: str = ""
    store: str = ""
    direct: str = ""

    @property
    def scheme(self) -> str:
        """Of the location: ``mlflow-artifacts`` goes through the server; "" and ``file`` are a folder."""
        return urlsplit(self.location).scheme


def exchange(uri: str, experiment: str) -> Exchange:
    """Writes, reads, compares and deletes a small file below the experiment's artifacts; makes no run and no
    experiment."""
    from cnn_jobs.tracking import probe

    try:
        location, exists = probe.artifact_location(uri, experiment)
        plan = Exchange(location, exists)
        if not location or _is_folder_elsewhere(plan, uri):
            return plan
        file = probe.ProbeFile(uri, location)
    except Exception as error:  # of MLflow's client, or of the database
        return Exchange("", False, f"where they go cannot be told ({_reason(error, uri)})")
    fault = _send_and_fetch(file, uri)
    through_server = plan.scheme == "mlflow-artifacts" and not fault
    store, direct = _fetch_directly(file, uri) if through_server else ("", "")
    try:
        file.delete()
        left = ""
    except Exception as error:  # of requests, boto3, a disk, or MLflow
        left = _reason(error, uri)
    return Exchange(location, exists, fault, left, store, direct)


def _send_and_fetch(file: ProbeFile, uri: str) -> str:
    """What went wrong, "" for nothing."""
    doing = "written"
    try:
        file.write()
        doing = "read back"
        return "" if file.read() == file.content else "is read back with another content"
    except Exception as error:  # of requests, boto3, a disk, or MLflow
        return f"cannot be {doing} ({_reason(error, uri)})"


def check_artifacts(done: Exchange, uri: str, experiment: str) -> Finding:
    """A file goes to where the experiment's artifacts go and comes back, by the way that fits a cluster."""
    if not done.location:
        advice = "look at the server's log, or check the database"
        return failed(done.fault, advice) if done.fault else skipped("no experiment says where artifacts go")
    place = done.location if done.exists else f"{done.location} (of 'Default': '{experiment}' is not made yet)"
    if _is_folder_elsewhere(done, uri):
        found = f"{place} is a folder: files would be written on this machine, not on the server"
        return failed(found, NEW_EXPERIMENT) if done.exists else warning(found, BEHIND_SERVER)
    if done.fault:
        return failed(f"{place}: a file {done.fault}", _what_helps(done, uri))
    if done.left:
        return warning(
            f"{place}: written and read back, but not deleted ({done.left})",
            "training does not need that; delete the folder doctor-* there by hand",
        )
    if done.scheme == "mlflow-artifacts":
        return ok(f"{place}: written and read back through the server")
    if done.scheme in ("", "file"):
        return _folder_here(place, uri)
    return warning(
        f"{place}: written and read back, but directly: every machine that trains needs keys for it",
        NEW_EXPERIMENT if urlsplit(uri).scheme.startswith("http") else "run an MLflow server that keeps the keys",
    )


def check_presigned(done: Exchange) -> Finding:
    """Whether files are fetched past the server, as MLflow's clients do by default where the store is S3."""
    if done.fault:
        return skipped("no file could be written and read back")
    if done.scheme != "mlflow-artifacts":
        return skipped("artifacts do not go through a server")
    on = [name for name in SWITCHES if os.environ.get(name, "").lower() in ("true", "1")]
    if not done.store:
        return ok("the server hands out no addresses of its store: everything goes through it")
    if not on:
        state = f"cannot ({done.direct})" if done.direct else "could"
        return ok(f"off: files go through the server; from here they {state} be fetched from {done.store}")
    if done.direct:
        return failed(
            f"{' and '.join(on)} sends clients to {done.store}, and there: {done.direct}",
            f"set {'=false and '.join(on)}=false: then files go through the server",
        )
    return ok(f"on: files come straight from {done.store}")


def _fetch_directly(file: ProbeFile, uri: str) -> tuple[str, str]:
    """Address of the store, "" where the server names none, and what keeps the file from coming from there."""
    import requests

    try:
        presigned = file.presigned()
    except Exception as error:  # of requests or MLflow
        return "the server's store", f"its address cannot be had ({_reason(error, uri)})"
    if not presigned.url:
        return "", ""
    store = f"{urlsplit(presigned.url).scheme}://{network.shown(presigned.url)}"
    limits = (network.CONNECT_S, network.ANSWER_S)
    try:
        with requests.get(presigned.url, headers=presigned.headers, timeout=limits, stream=True) as response:
            if response.status_code != 200:
                return store, f"it answers {response.status_code}"
            same = next(response.iter_content(len(file.content) + 1), b"") == file.content
            return store, "" if same else "it sends another file"
    except requests.RequestException as error:
        return store, network.diagnose(error, presigned.url)[0]


def _is_folder_elsewhere(done: Exchange, uri: str) -> bool:
    """A path that an http server of another machine means for its own disk."""
    if done.scheme not in ("", "file") or not uri.startswith("http"):
        return False
    return not network.is_this_machine(uri)


def _folder_here(place: str, uri: str) -> Finding:
    if not uri.startswith("http"):
        return ok(f"{place}: written and read back, on this machine")
    return warning(
        f"{place} is a folder of this machine, written and read back: right only if the server runs here, too",
        NEW_EXPERIMENT,
    )


def _what_helps(done: Exchange, uri: str) -> str:
    if done.scheme == "mlflow-artifacts" and not uri.startswith("http"):
        return "these artifacts are behind a server: set MLFLOW_TRACKING_URI to its http:// address"
    if done.scheme == "mlflow-artifacts":
        return "look at the server's log: its --artifacts-destination must be writable, and its keys for that valid"
    if done.scheme in ("", "file"):
        return "make the folder writable, or run an MLflow server"
    if in_pod():
        return f"pods should hold no keys: {NEW_EXPERIMENT}"
    return f"set the keys for {done.scheme}:// here, or {NEW_EXPERIMENT}"


def _reason(error: Exception, uri: str) -> str:
    from cnn_jobs.tracking.connection import explain, http_status

    if http_status(error) is not None:
        return explain(error, uri)
    return " ".join(str(error).split())[:300] or type(error).__name__
