"""Where this process runs, as Kubernetes' environment variables tell it."""

from __future__ import annotations

import os
import re

from cnn_jobs.errors import UserError

LOOK_UP_S = 5.0
# The Service of k8s/stack.
POD_TRACKING_URI = "http://mlflow:5000"
STAGE_IN_CLUSTER = "stage it in the cluster: kubectl apply -f k8s/prepare-data-job.yaml"
KEY_FORM = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"


def in_pod() -> bool:
    """Whether this process runs in a Kubernetes pod (every pod is given the API server's address)."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def job_run_key(*, shared: bool = False) -> str:
    """The run key that a Kubernetes Job gives: its UID, and the completion index where it has one; "" elsewhere.

    ``shared``: all pods of the Job train one run, so that the index is none of its key.
    """
    uid = os.environ.get("CNN_JOBS_JOB_UID", "")
    index = "" if shared else os.environ.get("JOB_COMPLETION_INDEX", "")
    return f"{uid}-{index}" if uid and index else uid


def job_group(*, shared: bool = False) -> str:
    """One word for the runs of an Indexed Job, its UID; "" elsewhere, and where its pods train one run (``shared``)."""
    return os.environ.get("CNN_JOBS_JOB_UID", "") if os.environ.get("JOB_COMPLETION_INDEX") and not shared else ""


def pod_tags() -> dict[str, str]:
    """Where on Kubernetes this process runs, as far as the Job's environment says it: tags of a run."""
    names = {
        "cnn_jobs.job_uid": "CNN_JOBS_JOB_UID",
        "cnn_jobs.completion_index": "JOB_COMPLETION_INDEX",
        "cnn_jobs.pod": "CNN_JOBS_POD",
        "cnn_jobs.node": "CNN_JOBS_NODE",
    }
    return {tag: os.environ[name] for tag, name in names.items() if os.environ.get(name)}


def may_download() -> bool:
    """Whether a data set or weights that are missing come from the internet: not in a pod, where they are staged once
    for all (``CNN_JOBS_DOWNLOAD=1`` allows it). Raises ``UserError`` for anything but 0 and 1."""
    wanted = os.environ.get("CNN_JOBS_DOWNLOAD", "")
    if wanted not in ("", "0", "1"):
        raise UserError(f"CNN_JOBS_DOWNLOAD is '{wanted}', but must be 0 or 1")
    return wanted == "1" if wanted else not in_pod()


def check_run_key(key: str) -> str:
    """``key`` if it can name a folder and a tag. Raises ``UserError`` (exit 2)."""
    if not re.fullmatch(KEY_FORM, key):
        raise UserError(
            f"--run-key is '{key}', but must be 1 to 128 letters, digits, '.', '_' or '-', the first a letter or digit"
        )
    return key


def default_ship_deadline_s() -> float:
    """How long the end of a run waits for MLflow: a pod's disk goes with the pod, a laptop's stays."""
    return 3600.0 if in_pod() else 60.0


def look_up_budget_s() -> float:
    """How long a start without local state waits for MLflow to say whether the run exists."""
    return 300.0 if in_pod() else LOOK_UP_S
