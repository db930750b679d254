"""Requests that leave MLflow unchanged: which server answers, which database, whether artifacts can be read back."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cnn_jobs.tracking.connection import configure_client

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

# MLflow's timeouts for a whole call, shorter than those of a training.
SHORT_TIMEOUTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
# Maximum length of a response: an unknown server may send data without end.
MOST_CHARACTERS = 1 << 16
FILE = "probe.txt"


@dataclass(frozen=True)
class Answer:
    """An HTTP response; status 0 if there is none, ``text`` is the reason then.

    ``sent_s`` and ``received_s``: this machine's clock, in seconds since 1970.
    """

    status: int
    text: str
    content_type: str = ""
    date: str = ""
    sent_s: float = 0.0
    received_s: float = 0.0

    @property
    def milliseconds(self) -> float:
        """Time from the request to the response."""
        return 1000 * (self.received_s - self.sent_s)


@dataclass(frozen=True)
class Schema:
    """Number of ``tables`` of a database and their revision, ``found`` and ``expected`` by this MLflow; ``known``:
    whether this MLflow knows the one found."""

    found: str | None
    expected: str
    known: bool
    tables: int


def prepare() -> None:
    """Imports MLflow with the settings of training, but with short timeouts, whatever the user has set."""
    configure_client()
    os.environ.update(SHORT_TIMEOUTS)
    import mlflow.store.artifact.artifact_repository_registry
    import mlflow.tracking  # noqa: F401


def ask(uri: str, method: str, endpoint: str, *, connect_s: float, answer_s: float, **arguments: Any) -> Answer:
    """One request, with the login and certificates of MLflow's variables. Raises the errors of ``requests``."""
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
        raise error.__context__ or error from None  # MLflow's own error does not distinguish the kinds
    with response:
        received = time.time()
        text = next(response.iter_content(MOST_CHARACTERS), b"").decode(errors="replace")
        kind, date = (response.headers.get(name, "") for name in ("Content-Type", "Date"))
        return Answer(response.status_code, text, kind, date, sent, received)


def database_file(uri: str) -> Path | None:
    """The file of an ``sqlite:`` URI; ``None`` for a database in memory."""
    from sqlalchemy.engine import make_url

    name = make_url(uri).database
    return Path(name) if name and name != ":memory:" else None


def schema(uri: str) -> Schema:
    """The tables of a database. Raises the errors of SQLAlchemy and of the database's driver."""
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
    """One search of experiments, by MLflow's client, with its errors. Creates a missing database."""
    from mlflow import MlflowClient

    MlflowClient(uri).search_experiments(max_results=1)


def artifact_location(uri: str, experiment: str) -> tuple[str, bool]:
    """Artifact location of an experiment, and whether it exists; else that of MLflow's default one, "" without."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    for name, exists in ((experiment, True), ("Default", False)):
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.artifact_location), exists
    return "", False


class ProbeFile:
    """A small file in a folder of its own at an artifact location.

    Calls raise the errors of MLflow's client for that kind of store. For S3 they use its boto3 client, and downloads
    its single-file function: MLflow's parallel transfers use threads that would delay the exit of this process.
    """

    def __init__(self, uri: str, location: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self.repository: ArtifactRepository = get_artifact_repository(location, tracking_uri=uri)
        self.folder = f"doctor-{uuid.uuid4().hex}"
        self.content = f"written by cnn-jobs doctor, to be read back and deleted: {self.folder}\n".encode()

    def write(self) -> None:
        """Uploads the file."""
        if self._s3 is not None:
            self._s3.put_object(**self._key, Body=self.content)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / FILE
            path.write_bytes(self.content)
            self.repository.log_artifact(str(path), self.folder)  # type: ignore[no-untyped-call]

    def read(self) -> bytes:
        """Downloads the file; proxied artifacts through the server, whatever the environment sets."""
        from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

        if self._s3 is not None:
            content: bytes = self._s3.get_object(**self._key)["Body"].read()
            return content
        # A subclass of the HTTP repository may bypass the server.
        proxied = isinstance(self.repository, HttpArtifactRepository)
        download = (HttpArtifactRepository if proxied else type(self.repository))._download_file
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / FILE
            download(self.repository, f"{self.folder}/{FILE}", str(path))  # type: ignore[no-untyped-call]
            return path.read_bytes()

    def presigned(self) -> tuple[str, dict[str, str]]:
        """URL with a signature, and headers, with which clients bypass the server; "" if it issues none.

        Raises ``requests.HTTPError`` if the server refuses.
        """
        from requests import HTTPError

        try:
            found = self.repository._get_presigned_download_url(f"{self.folder}/{FILE}")  # type: ignore[attr-defined]
        except HTTPError as error:
            if error.response is not None and error.response.status_code in (404, 501):
                return "", {}
            raise
        return found.url, dict(found.headers or {})

    def delete(self) -> None:
        """Deletes the folder."""
        if self._s3 is not None:
            self._s3.delete_object(**self._key)
        else:
            self.repository.delete_artifacts(self.folder)  # type: ignore[no-untyped-call]

    @cached_property
    def _s3(self) -> Any:
        """MLflow's boto3 client for an S3 location that is not proxied, else ``None``."""
        from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

        if not isinstance(self.repository, S3ArtifactRepository):
            return None
        return self.repository._get_s3_client()  # type: ignore[no-untyped-call]

    @property
    def _key(self) -> dict[str, str]:
        place = urlsplit(self.repository.artifact_uri)
        return {"Bucket": place.netloc, "Key": f"{place.path.strip('/')}/{self.folder}/{FILE}".lstrip("/")}
