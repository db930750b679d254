"""Records to MLflow calls."""

from __future__ import annotations

import getpass
import json
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cnn_jobs.tracking.records import Artifact, DatasetInput, Metric, Params, Record, RunRequest, Tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric as MlflowMetric

# MLflow's limits a call: 1,000 metrics, 100 params, 100 tags, 36 characters of a data set's digest.
METRICS_PER_CALL = 1000
VALUES_PER_CALL = 100
DIGEST_LENGTH = 36
# What the UI calls an experiment of this kind.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


def create_run(client: MlflowClient, request: RunRequest) -> tuple[str, str]:
    """Makes the run, and the experiment where it is missing; returns (experiment id, run id)."""
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    experiment_id = _experiment_id(client, request.experiment)
    tags = {"mlflow.user": _user(), **request.tags}
    if request.parent_run_id:
        tags[MLFLOW_PARENT_RUN_ID] = request.parent_run_id
    run = client.create_run(experiment_id, start_time=now_ms(), tags=tags, run_name=request.name)
    return experiment_id, run.info.run_id


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a numeric user of a container has no name
        return str(os.getuid()) if hasattr(os, "getuid") else ""


def _experiment_id(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, tags=EXPERIMENT_TAGS))
        except MlflowException:
            # Another process may have made it in between; anything else is the error to show.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def send(client: MlflowClient, run_id: str, records: Sequence[Record]) -> None:
    """Sends records of one kind, in as few calls as MLflow's limits allow."""
    match records[0]:
        case Metric():
            metrics = [_metric(record) for record in records if isinstance(record, Metric)]
            for start in range(0, len(metrics), METRICS_PER_CALL):
                client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_CALL])
        case Params() | Tags():
            for record in records:
                _send_values(client, run_id, record)
        case DatasetInput():
            for record in records:
                _send_dataset(client, run_id, record)
        case Artifact():
            for record in records:
                _send_artifact(client, run_id, record)


def _metric(record: Metric) -> MlflowMetric:
    from mlflow.entities import Metric as MlflowMetric

    return MlflowMetric(record.key, record.value, record.timestamp_ms, record.step)


def _send_values(client: MlflowClient, run_id: str, record: Record) -> None:
    from mlflow.entities import Param, RunTag

    assert isinstance(record, Params | Tags)
    items = list(record.values.items())
    for start in range(0, len(items), VALUES_PER_CALL):
        chunk = items[start : start + VALUES_PER_CALL]
        if isinstance(record, Params):
            client.log_batch(run_id, params=[Param(key, value) for key, value in chunk])
        else:
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in chunk])


def _send_dataset(client: MlflowClient, run_id: str, record: Record) -> None:
    from mlflow.entities import Dataset, InputTag
    from mlflow.entities import DatasetInput as MlflowDatasetInput
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    assert isinstance(record, DatasetInput)
    dataset = Dataset(
        name=record.name,
        digest=record.digest[:DIGEST_LENGTH],
        source_type="uri",
        source=json.dumps({"uri": record.source}),
        profile=json.dumps(dict(record.profile)),
    )
    context = [InputTag(MLFLOW_DATASET_CONTEXT, "training")]
    client.log_inputs(run_id, datasets=[MlflowDatasetInput(dataset, context)])


def _send_artifact(client: MlflowClient, run_id: str, record: Record) -> None:
    assert isinstance(record, Artifact)
    # The folder is always named: without it a proxied store may put the file elsewhere (mlflow#11225).
    if record.path.is_dir():
        client.log_artifacts(run_id, str(record.path), record.folder or None)
    else:
        client.log_artifact(run_id, str(record.path), record.folder or None)


def now_ms() -> int:
    """Wall clock in milliseconds since 1970, as MLflow stamps it."""
    return time.time_ns() // 1_000_000
