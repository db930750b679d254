"""Runs read back from MLflow, as plain rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cnn_jobs.errors import CnnJobsError, TrackingError, UserError
from cnn_jobs.tracking.connection import check_uri, configure_client, explain

PAGE = 1000


@dataclass(frozen=True)
class RunRow:
    """One run of an experiment; ``params``, ``metrics`` (last values) and ``tags`` by name."""

    run_id: str
    name: str
    status: str
    start_ms: int
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


def runs_of(uri: str, experiment: str, task: str = "") -> list[RunRow]:
    """Runs of an experiment that trained something, oldest first; parents of a series and documents are left out.

    Raises ``UserError`` for an unknown experiment, ``TrackingError`` where MLflow does not answer.
    """
    check_uri(uri)
    configure_client()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(uri)
    try:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            names = ", ".join(sorted(each.name for each in client.search_experiments()))
            raise UserError(f"experiment '{experiment}' is not in MLflow; there are: {names}")
        runs = []
        page = None
        while page is None or page.token:
            page = client.search_runs(
                [found.experiment_id],
                order_by=["attributes.start_time ASC"],
                max_results=PAGE,
                page_token=page.token if page else None,
            )
            runs += list(page)
    except CnnJobsError:
        raise
    except (MlflowException, OSError) as error:
        raise TrackingError(explain(error, uri)) from error
    rows = [
        RunRow(
            r.info.run_id,
            r.info.run_name,
            r.info.status,
            r.info.start_time,
            r.data.params,
            r.data.metrics,
            r.data.tags,
        )
        for r in runs
    ]
    return [
        row
        for row in rows
        if row.tags.get("cnn_jobs.task") == (task or row.tags.get("cnn_jobs.task", ""))
        and "cnn_jobs.task" in row.tags
        and "cnn_jobs.role" not in row.tags
    ]
