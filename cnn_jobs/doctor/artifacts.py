"""Artifacts: where they go, whether a file goes there and comes back, and whether by way of the server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cnn_jobs.data import s3
from cnn_jobs.doctor import network
from cnn_jobs.doctor.finding import Finding, failed, from_error, ok, skipped, warning
from cnn_jobs.errors import DataError
from cnn_jobs.system.environment import in_pod

if TYPE_CHECKING:
    from cnn_jobs.tracking.probe import ProbeFile


KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
ENDPOINT = "AWS_ENDPOINT_URL"

# What a server answers, and what is wrong then; the codes are those of S3, which other servers repeat.
_REFUSALS = {
    "InvalidAccessKeyId": ("it does not know the access key", f"correct {KEYS}: they may be of another server"),
    "SignatureDoesNotMatch": ("the secret key does not fit the access key", f"correct {KEYS}"),
    "ExpiredToken": ("the keys have expired", "get new ones, and set AWS_SESSION_TOKEN with them"),
    "InvalidToken": ("the session token is not valid", "get new keys, and set AWS_SESSION_TOKEN with them"),
    "RequestTimeTooSkewed": ("this machine's clock is more than 15 minutes off", "set it by NTP"),
    "AccessDenied": ("these keys may not read it", "allow s3:GetObject on it, and s3:ListBucket on the bucket"),
    "NoSuchBucket": ("there is no such bucket", f"check the bucket's name, and {ENDPOINT}"),
    "NoSuchKey": ("the bucket has no such key", "check the key; 'cnn-jobs data prepare SRC s3://BUCKET/' makes one"),
    "PermanentRedirect": ("the bucket is in another region", "set AWS_DEFAULT_REGION to the bucket's"),
    "AuthorizationHeaderMalformed": ("the region is wrong", "set AWS_DEFAULT_REGION to the bucket's"),
}
_BY_STATUS = {301: "PermanentRedirect", 403: "AccessDenied", 404: "NoSuchKey"}


@dataclass(frozen=True)
class Looked:
    """What was found of an object: ``size`` in bytes; ``digest`` of the data set in it, "" where nobody stored one."""

    finding: Finding
    size: int = 0
    digest: str = ""

    @property
    def there(self) -> bool:
        """Whether it can be read."""
        return self.finding.status == "ok"


def look(uri: str) -> Looked:
    """Reads the first byte of the object: a mere look (HEAD) would not say why it is refused."""
    from botocore import exceptions as boto

    try:
        bucket, key = s3.split_uri(uri)
        client = _client()
    except DataError as error:
        return Looked(from_error(error, "the form is s3://bucket/key"))
    except (boto.BotoCoreError, ValueError) as error:
        return Looked(failed(f"{uri}: {error}", f"check {ENDPOINT} and the other AWS_ variables"))
    endpoint = str(client.meta.endpoint_url)
    try:
        found = client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0")
    except boto.ClientError as error:
        return Looked(_refused(uri, endpoint, error.response))
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError) as error:
        return Looked(failed(f"{uri}: no keys for {network.shown(endpoint)} ({error})", f"set {KEYS}"))
    except (boto.ConnectionError, boto.HTTPClientError) as error:
        found_out, advice = network.diagnose(error, endpoint)
        return Looked(failed(f"{uri}: {found_out}", f"{advice}; {ENDPOINT} names the server"))
    except (boto.BotoCoreError, ValueError) as error:
        return Looked(failed(f"{uri}: {error}", "check the URI and the AWS_ variables"))
    size = int(str(found.get("ContentRange", "/0")).rpartition("/")[2])
    digest = found.get("Metadata", {}).get("cnn-jobs-digest", "")
    return Looked(ok(f"{uri}: {size / 1e6:.1f} MB at {network.shown(endpoint)}, keys are taken"), size, digest)


def _client() -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=network.CONNECT_S,
        read_timeout=network.ANSWER_S,
        retries={"mode": "standard", "total_max_attempts": 1},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    # As the data module makes its own, but for the waits.
    return boto3.Session().client("s3", endpoint_url=s3.endpoint_url(), config=config)


def _refused(uri: str, endpoint: str, response: Any) -> Finding:
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    error = response.get("Error", {})
    code = str(error.get("Code", ""))
    said = f"{status} {code}: {error.get('Message', '')}".rstrip(": ")
    where = network.shown(endpoint)
    if code == "InvalidRange":
        return failed(f"{uri} is empty", "stage it again: 'cnn-jobs data prepare'")
    known = _REFUSALS.get(code) or _REFUSALS.get(_BY_STATUS.get(status, ""))
    if known:
        return failed(f"{uri}: {known[0]} ({where}: {said})", known[1])
    if status >= 500:
        return failed(f"{uri}: {where} fails ({said})", "look at the server's log, or try again later")
    return failed(f"{uri}: {where} refuses it ({said})", f"check {ENDPOINT} and the bucket's policy")


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
