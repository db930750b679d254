"""Questions to MLflow that change nothing in it: what answers there, which database, whether artifacts come back."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cnn_jobs.tracking.connection import configure_client

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

# Of a whole call: a process that only asks need not be patient.
SHORT_WAITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
MOST_CHARACTERS = 1 << 16  # of an answer: whatever listens there may send without end
FILE = "probe.txt"


@dataclass(frozen=True)
class Answer:
    """An answer by HTTP. ``sent_s`` and ``received_s``: this machine's clock, in seconds since 1970."""

    status: int
    text: str
    content_type: str
    date: str
    sent_s: float
    received_s: float


@dataclass(frozen=True)
class Schema:
    """The revision of a database's tables, ``found`` and ``expected`` by this MLflow; ``known``: whether this MLflow
    has heard of the one found; ``tables``: how many there are."""

    found: str | None
    expected: str
    known: bool
    tables: int


@dataclass(frozen=True)
class Presigned:
    """Where a client of the server would fetch a file by itself; ``url`` holds a signature, and is "" where the
    server hands out none."""

    url: str
    headers: dict[str, str]


def prepare() -> None:
    """Imports MLflow as training has it set up, but with short waits, whatever the user has set."""
    configure_client()
    os.environ.update(SHORT_WAITS)
    import mlflow.store.artifact.artifact_repository_registry
    import mlflow.tracking  # noqa: F401


def ask(uri: str, method: str, endpoint: str, *, connect_s: float, answer_s: float, **arguments: Any) -> Answer:
    """One request, with the login and certificates of MLflow's variables. Raises what ``requests`` raises."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    sent = time.time()
    try:
        response = http_request(
            get_default_host_creds(uri),  # type: ignore[no-untyped-call]
            endpoint,
            method,
            max_retries=0,
            timeout=(connect_s, answer_s),
            raise_on_status=False,
            stream=True,
            **arguments,
        )
    except MlflowException as error:
        raise error.__context__ or error from None  # MLflow's own words no longer tell what it was
    with response:
        received = time.time()
        text = next(response.iter_content(MOST_CHARACTERS), b"").decode(errors="replace")
        kind, date = (response.headers.get(name, "") for name in ("Content-Type", "Date"))
        return Answer(response.status_code, text, kind, date, sent, received)


def client_version() -> str:
    """Of the MLflow in this process."""
    from mlflow.version import VERSION

    return VERSION


def database_file(uri: str) -> Path | None:
    """The file of an ``sqlite:`` URI; ``None`` for one in memory."""
    from sqlalchemy.engine import make_url

    name = make_url(uri).database
    return Path(name) if name and name != ":memory:" else None


def schema(uri: str) -> Schema:
    """What tables a database has. Raises what SQLAlchemy and the database's driver raise."""
    import sqlalchemy
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine(uri)  # type: ignore[no-untyped-call]
    try:
        tables = sqlalchemy.inspect(engine).get_table_names()
        found = utils._get_schema_version(engine) if tables else None  # type: ignore[no-untyped-call]
    finally:
        engine.dispose()
    expected = utils._get_latest_schema_revision()  # type: ignore[no-untyped-call]
    try:
        scripts = ScriptDirectory.from_config(utils._get_alembic_config(""))  # type: ignore[no-untyped-call]
        known = found is None or scripts.get_revision(found) is not None
    except CommandError:
        known = False
    return Schema(found, expected, known, len(tables))


def search(uri: str) -> None:
    """One search of experiments, by MLflow's client. Raises what that raises; makes a database that is not there."""
    from mlflow import MlflowClient

    MlflowClient(uri).search_experiments(max_results=1)


def artifact_location(uri: str, experiment: str) -> tuple[str, bool]:
    """Where the artifacts of an experiment go, and whether it exists; else those of MLflow's first, "" without one."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    for name, exists in ((experiment, True), ("Default", False)):
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.artifact_location), exists
    return "", False


class ProbeFile:
    """A small file in a folder of its own at an artifact location; leaving removes it."""

    def __init__(self, uri: str, location: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self.repository: ArtifactRepository = get_artifact_repository(location, tracking_uri=uri)
        self.folder = f"doctor-{uuid.uuid4().hex}"
        self.content = f"written by cnn-jobs doctor, to be read back and deleted: {self.folder}\n".encode()

    def write(self) -> None:
        """Raises what MLflow's client of that kind of store raises, as the other calls do."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / FILE
            path.write_bytes(self.content)
            if (client := self._s3()) is not None:
                client.put_object(**self._key(), Body=self.content)
            else:
                self.repository.log_artifact(str(path), self.folder)  # type: ignore[no-untyped-call]

    def read(self) -> bytes:
        """What comes back; where artifacts are proxied, through the server, whatever the environment says."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / FILE
            if (client := self._s3()) is not None:
                content: bytes = client.get_object(**self._key())["Body"].read()
                return content
            # Not ``download_artifacts``: the threads that it starts would hold up the exit of this process.
            self._download()(f"{self.folder}/{FILE}", str(path))
            return path.read_bytes()

    def presigned(self) -> Presigned:
        """Raises ``requests.HTTPError`` where the server refuses; no URL where it knows no such thing."""
        from requests import HTTPError

        try:
            found = self.repository._get_presigned_download_url(f"{self.folder}/{FILE}")  # type: ignore[attr-defined]
        except HTTPError as error:
            if error.response is not None and error.response.status_code in (404, 501):
                return Presigned("", {})
            raise
        return Presigned(found.url, dict(found.headers or {}))

    def delete(self) -> None:
        """Removes the folder."""
        if (client := self._s3()) is not None:
            client.delete_object(**self._key())
        else:
            self.repository.delete_artifacts(self.folder)  # type: ignore[no-untyped-call]

    def _download(self) -> Callable[[str, str], None]:
        from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

        if isinstance(self.repository, HttpArtifactRepository):
            # That of the class below it may leave the server aside.
            return partial(HttpArtifactRepository._download_file, self.repository)
        return self.repository._download_file

    def _s3(self) -> Any:
        """MLflow's client of boto3 for a location that is not proxied, else ``None``: its own transfers use threads
        that would hold up the exit of this process."""
        from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

        if not isinstance(self.repository, S3ArtifactRepository):
            return None
        return self.repository._get_s3_client()  # type: ignore[no-untyped-call]

    def _key(self) -> dict[str, str]:
        place = urlsplit(self.repository.artifact_uri)
        return {"Bucket": place.netloc, "Key": f"{place.path.strip('/')}/{self.folder}/{FILE}".lstrip("/")}
