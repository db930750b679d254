"""Calls to MLflow. Each is acknowledged, or raises ``OutageError`` (try again) or ``RefusalError`` (never)."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from cnn_jobs.errors import ArtifactLocationError, CnnJobsError, DeletedExperimentError
from cnn_jobs.tracking import names
from cnn_jobs.tracking.connection import (
    OutageError,
    RefusalError,
    check_uri,
    classify,
    configure_client,
    is_server,
)
from cnn_jobs.tracking.records import DatasetInput, Metric, RunHeader
from cnn_jobs.tracking.run_status import CANCELLED

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


# MLflow's limits a call: 1,000 metrics, 100 params, 100 tags, 36 characters of a data set's digest.
METRICS_PER_CALL = 1000
VALUES_PER_CALL = 100
DIGEST_LENGTH = 36
# What the UI calls an experiment of this kind.
EXPERIMENT_TAGS = {names.EXPERIMENT_KIND: "custom_model_development"}

Result = TypeVar("Result")


@dataclass(frozen=True)
class RemoteRun:
    """A run as MLflow has it; ``metrics`` has the latest values."""

    run_id: str
    experiment_id: str
    name: str
    status: str
    start_ms: int
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]

    @property
    def attempt(self) -> int:
        """Number of the last attempt, 0 for none."""
        text = self.tags.get(names.ATTEMPT, "0")
        return int(text) if text.isdigit() else 0

    @property
    def attempt_id(self) -> str:
        """Id of the last attempt, "" for none."""
        return self.tags.get(names.ATTEMPT_ID, "")

    @property
    def state(self) -> str:
        """The tag ``cnn_jobs.state``, "" for none."""
        return self.tags.get(names.STATE, "")

    @property
    def cancelled(self) -> bool:
        """Whether a user cancelled it; it may still be running, or have FINISHED before it noticed."""
        return self.state == CANCELLED

    @property
    def heartbeat(self) -> int:
        """The counter that a live attempt increments."""
        text = self.tags.get(names.HEARTBEAT, "0")
        return int(text) if text.isdigit() else 0


class TrackingClient:
    """One MLflow server or database."""

    def __init__(self, uri: str) -> None:
        """Raises ``TrackingUriError`` for a URI that MLflow does not understand; does not connect yet."""
        self.uri = check_uri(uri)
        self._client: MlflowClient | None = None
        self._server_folders: dict[str, str] = {}  # by run id
        self._experiment_ids: dict[str, str] = {}  # by the name that was looked up

    def load(self) -> None:
        """Imports MLflow, which takes seconds, before a time limit begins. Opens no connection."""
        configure_client()
        import mlflow  # noqa: F401

    def call(self, function: Callable[[MlflowClient], Result]) -> Result:
        """Calls ``function`` with a client. Raises ``OutageError``, ``RefusalError`` or ``TrackingUriError``."""
        try:
            if self._client is None:
                configure_client()
                from mlflow import MlflowClient

                self._client = MlflowClient(self.uri)
            return function(self._client)
        except CnnJobsError:
            raise
        except Exception as error:  # MLflow passes on all errors of the network, its client and its database
            if classified := classify(error, self.uri):
                raise classified from error
            raise

    def find(self, experiment: str, tag: str, value: str) -> list[RemoteRun]:
        """Active runs of an experiment with this tag, oldest first; none where the experiment does not exist."""
        runs = self._search(experiment, f"tags.`{tag}` = '{value}'")
        return sorted(runs, key=lambda run: (run.start_ms, run.run_id))

    def has_experiment(self, name: str) -> bool:
        """Whether an experiment of this name exists and is not deleted."""
        found = self.call(lambda client: client.get_experiment_by_name(name))
        return found is not None and found.lifecycle_stage == "active"

    def running(self, experiment: str) -> list[RemoteRun]:
        """Active runs of an experiment whose status is RUNNING."""
        return self._search(experiment, "attributes.status = 'RUNNING'")

    def of_job(self, uid: str) -> list[RemoteRun]:
        """Active runs of a Kubernetes Job in any experiment, by key; of duplicates the oldest first."""

        def search(client: MlflowClient) -> list[RemoteRun]:
            ids = [each.experiment_id for each in client.search_experiments(max_results=1000)]
            return _all_runs(client, ids, f"tags.`{names.RUN_KEY}` LIKE '{uid}%'") if ids else []

        return sorted(self.call(search), key=lambda run: (run.tags[names.RUN_KEY], run.start_ms, run.run_id))

    def create(self, header: RunHeader, tags: Mapping[str, str]) -> None:
        """Creates the run, and the experiment where it is missing."""

        def create(client: MlflowClient) -> None:
            own = {names.USER: _user(), **header.tags, names.RUN_KEY: header.run_key, **tags}
            experiment_id = self._experiment_id(client, header.experiment) or self._new_experiment(
                client, header.experiment
            )
            client.create_run(experiment_id, start_time=header.start_ms, tags=own, run_name=header.name)

        self.call(create)

    def get(self, run_id: str) -> RemoteRun | None:
        """The run; ``None`` where it was deleted."""
        run = self.call(lambda client: client.get_run(run_id))
        return _remote_run(run) if run.info.lifecycle_stage == "active" else None

    def delete(self, run_id: str) -> None:
        """Marks the run as deleted."""
        self.call(lambda client: client.delete_run(run_id))

    def log_metrics(self, run_id: str, metrics: Sequence[Metric]) -> None:
        """Logs at most ``METRICS_PER_CALL`` points. An exact repetition, timestamp included, changes nothing."""
        from mlflow.entities import Metric as Point

        points = [Point(each.key, each.value, each.timestamp_ms, each.step) for each in metrics]
        self.call(lambda client: client.log_batch(run_id, metrics=points))

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Logs params. A repetition changes nothing; another value for an existing param is refused."""
        from mlflow.entities import Param

        for chunk in _chunks(params):
            batch = [Param(*item) for item in chunk]
            self.call(partial(_log_batch, run_id, params=batch))

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Sets tags; a later value replaces an earlier one."""
        from mlflow.entities import RunTag

        for chunk in _chunks(tags):
            batch = [RunTag(*item) for item in chunk]
            self.call(partial(_log_batch, run_id, tags=batch))

    def log_dataset(self, run_id: str, record: DatasetInput) -> None:
        """Logs the run's data set."""
        from mlflow.entities import Dataset, InputTag
        from mlflow.entities import DatasetInput as Input
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        source, profile = json.dumps({"uri": record.source}), json.dumps(dict(record.profile))
        dataset = Dataset(record.name, record.digest[:DIGEST_LENGTH], "uri", source, profile=profile)
        inputs = [Input(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])]

        def log(client: MlflowClient) -> None:
            client.log_inputs(run_id, datasets=inputs)

        try:
            self.call(log)
        except RefusalError:
            # Runs that start together with a data set new to MLflow all find it missing. The database lets one create
            # it; the others get a duplicate key error. By then it exists.
            self.call(log)

    def upload(self, run_id: str, path: Path, to: str) -> None:
        """Uploads a file as the artifact ``to``, whose last part is the file's own name, and checks its size there."""
        # Always with the folder: without it a proxied store may put the file elsewhere (mlflow#11225).
        folder = str(PurePosixPath(to).parent)
        folder = "" if folder == "." else folder
        self.call(lambda client: client.log_artifact(run_id, str(path), folder or None))
        if self._server_folder(run_id):
            self._check_server_sees(run_id, to, folder)
        listed = self.call(lambda client: client.list_artifacts(run_id, folder or None))
        arrived = next((each.file_size for each in listed if each.path == to), None)
        if arrived != path.stat().st_size:
            raise OutageError(f"{to}: MLflow has {arrived} of {path.stat().st_size} bytes")

    def _server_folder(self, run_id: str) -> str:
        """URI of the artifacts of a server's run if it is a folder, else "": MLflow's client then writes to a disk of
        this machine, and lists what is there."""
        if run_id not in self._server_folders:
            uri = self.call(lambda client: client.get_run(run_id)).info.artifact_uri
            self._server_folders[run_id] = uri if is_server(self.uri) and urlsplit(uri).scheme in ("", "file") else ""
        return self._server_folders[run_id]

    def _check_server_sees(self, run_id: str, to: str, folder: str) -> None:
        """Raises ``ArtifactLocationError`` if the server does not find the artifact ``to``, which was just written."""

        def listed(client: MlflowClient) -> list[dict[str, Any]]:
            from mlflow.utils.rest_utils import http_request, verify_rest_response

            where = {"run_id": run_id, **({"path": folder} if folder else {})}
            credentials = client._tracking_client.store.get_host_creds()
            endpoint = "/api/2.0/mlflow/artifacts/list"
            answer = http_request(credentials, endpoint, "GET", params=where)  # type: ignore[no-untyped-call]
            found: list[dict[str, Any]] = verify_rest_response(answer, endpoint).json().get("files", [])
            return found

        if not any(each["path"] == to for each in self.call(listed)):
            raise ArtifactLocationError(
                f"artifacts belong into {self._server_folder(run_id)}, a folder of the MLflow server, which does not "
                "see what this machine writes there; use a new --experiment, which gets a location behind the server"
            )

    def download(self, run_id: str, artifact: str, folder: Path) -> Path:
        """Downloads an artifact into ``folder``, under its own path; returns where it is."""
        try:
            return Path(self.call(lambda client: client.download_artifacts(run_id, artifact, str(folder))))
        except RefusalError as refusal:
            # MLflow reports every failed download as missing, whatever the cause.
            raise OutageError(f"{artifact} of run {run_id}: {refusal}") from refusal

    def artifacts(self, run_id: str, folder: str) -> list[str]:
        """Paths of the artifacts in a folder of the run."""
        return [each.path for each in self.call(lambda client: client.list_artifacts(run_id, folder))]

    def delete_artifact(self, run_id: str, path: str) -> None:
        """Deletes an artifact; does nothing where it is missing, or the server does not allow it."""

        def delete(client: MlflowClient) -> None:
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            where = client.get_run(run_id).info.artifact_uri
            repository = get_artifact_repository(where, tracking_uri=self.uri)
            repository.delete_artifacts(path)  # type: ignore[no-untyped-call]

        if path in self.artifacts(run_id, str(PurePosixPath(path).parent)):
            with contextlib.suppress(RefusalError):
                self.call(delete)

    def history(self, run_id: str, key: str) -> list[Metric]:
        """Every point of a metric."""
        points = self.call(lambda client: client.get_metric_history(run_id, key))
        return [Metric(each.key, each.value, each.step, each.timestamp) for each in points]

    def set_status(self, run_id: str, status: str, end_ms: int | None = None) -> None:
        """Sets ``RUNNING``, or a final status with its time."""
        if status == "RUNNING":
            self.call(lambda client: client.update_run(run_id, status=status))
        else:
            self.call(lambda client: client.set_terminated(run_id, status, end_ms))

    def _search(self, experiment: str, condition: str) -> list[RemoteRun]:
        def search(client: MlflowClient) -> list[RemoteRun]:
            experiment_id = self._experiment_id(client, experiment)
            return _all_runs(client, [experiment_id], condition) if experiment_id else []

        return self.call(search)

    def _experiment_id(self, client: MlflowClient, name: str) -> str:
        """Id of the experiment that had this name when it was first looked up, "" if there is none: a user who renames
        it does not split a run. Raises ``DeletedExperimentError`` for a deleted one."""
        from mlflow.exceptions import MlflowException

        known = self._experiment_ids.get(name)
        try:
            found = client.get_experiment(known) if known else client.get_experiment_by_name(name)
        except MlflowException as error:
            if not known or error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise DeletedExperimentError(
                f"experiment '{name}' was deleted for good; use another --experiment"
            ) from error
        if found is None:
            return ""
        if found.lifecycle_stage == "deleted":
            raise DeletedExperimentError(
                f"experiment '{name}' is deleted in MLflow; use another --experiment, or restore it: "
                f"mlflow experiments restore --experiment-id {found.experiment_id}"
            )
        self._experiment_ids[name] = str(found.experiment_id)
        return self._experiment_ids[name]

    def _new_experiment(self, client: MlflowClient, name: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(client.create_experiment(name, tags=EXPERIMENT_TAGS))
        except MlflowException:
            # Another process may have created it meanwhile; otherwise this is the error to report.
            if there := self._experiment_id(client, name):
                return there
            raise


def _all_runs(client: MlflowClient, experiment_ids: list[str], condition: str) -> list[RemoteRun]:
    runs: list[RemoteRun] = []
    token: str | None = None
    while True:
        page = client.search_runs(experiment_ids, condition, max_results=1000, page_token=token)
        runs += map(_remote_run, page)
        token = page.token
        if not token:
            return runs


def _remote_run(run: Run) -> RemoteRun:
    info, data = run.info, run.data
    facts = (info.run_id, info.experiment_id, info.run_name or "", info.status, info.start_time or 0)
    return RemoteRun(*facts, params=dict(data.params), metrics=dict(data.metrics), tags=dict(data.tags))


def _log_batch(run_id: str, client: MlflowClient, **batch: Any) -> None:
    client.log_batch(run_id, **batch)


def _chunks(values: Mapping[str, str]) -> list[list[tuple[str, Any]]]:
    items = list(values.items())
    return [items[start : start + VALUES_PER_CALL] for start in range(0, len(items), VALUES_PER_CALL)]


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's numeric user has no name
        return str(os.getuid()) if hasattr(os, "getuid") else ""
