"""Where this process runs, as Kubernetes' environment variables tell it."""

from __future__ import annotations

import os
import re

from cnn_jobs.errors import UserError

LOOK_UP_S = 5.0
KEY_FORM = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"


def in_pod() -> bool:
    """Whether this process runs in a Kubernetes pod (every pod is given the API server's address)."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def job_run_key() -> str:
    """The run key that a Kubernetes Job gives: its UID, and the completion index where it has one; "" elsewhere."""
    uid = os.environ.get("CNN_JOBS_JOB_UID", "")
    index = os.environ.get("JOB_COMPLETION_INDEX", "")
    return f"{uid}-{index}" if uid and index else uid


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
