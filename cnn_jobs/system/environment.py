"""Where this process runs: its Kubernetes pod and Job, its machine, the code and packages that it runs."""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from cnn_jobs.errors import UserError

# The Service of k8s/stack.
POD_TRACKING_URI = "http://mlflow:5000"
STAGE_IN_CLUSTER = "stage it in the cluster: kubectl apply -f k8s/prepare-data-job.yaml"
KEY_FORM = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
LOOK_UP_S = 5.0
DOWNLOAD_TIMEOUT_S = 30.0
PACKAGES = ("cnn-jobs", "torch", "torchvision", "mlflow", "numpy", "pillow")


# -- Kubernetes ------------------------------------------------------------------------------------------------------


def in_pod() -> bool:
    """Whether this process runs in a Kubernetes pod: every pod gets the API server's address."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def job_run_key(*, shared: bool = False) -> str:
    """The run key of a Kubernetes Job's pod: the Job's UID, and the completion index where there is one; else "".

    ``shared``: all pods of the Job train one run, so that the key has no index.
    """
    uid = os.environ.get("CNN_JOBS_JOB_UID", "")
    index = "" if shared else os.environ.get("JOB_COMPLETION_INDEX", "")
    return f"{uid}-{index}" if uid and index else uid


def job_group(*, shared: bool = False) -> str:
    """The group of an Indexed Job's runs, its UID; "" elsewhere, and where its pods train one run (``shared``)."""
    return os.environ.get("CNN_JOBS_JOB_UID", "") if os.environ.get("JOB_COMPLETION_INDEX") and not shared else ""


def pod_facts() -> dict[str, str]:
    """``job_uid``, ``completion_index``, ``pod`` and ``node``, as far as the pod's environment has them."""
    variables = {
        "job_uid": "CNN_JOBS_JOB_UID",
        "completion_index": "JOB_COMPLETION_INDEX",
        "pod": "CNN_JOBS_POD",
        "node": "CNN_JOBS_NODE",
    }
    return {fact: os.environ[name] for fact, name in variables.items() if os.environ.get(name)}


def check_run_key(key: str) -> str:
    """``key`` if it can name a folder and be a tag. Raises ``UserError`` (exit 2)."""
    if not re.fullmatch(KEY_FORM, key):
        raise UserError(
            f"--run-key is '{key}', but must be 1 to 128 letters, digits, '.', '_' or '-', the first a letter or digit"
        )
    return key


# -- what differs between a pod and a laptop ---------------------------------------------------------------------------


def default_ship_deadline_s() -> float:
    """How long the end of a run waits for MLflow: a pod's disk goes with the pod, a laptop's stays."""
    return 3600.0 if in_pod() else 60.0


def look_up_timeout_s() -> float:
    """How long a start without local state waits for MLflow to answer whether the run exists."""
    return 300.0 if in_pod() else LOOK_UP_S


def may_download() -> bool:
    """Whether missing data sets and weights may be downloaded: not in a pod, where a Job stages them once.

    ``CNN_JOBS_DOWNLOAD`` overrides it. Raises ``UserError`` where that is neither 0 nor 1.
    """
    wanted = os.environ.get("CNN_JOBS_DOWNLOAD", "")
    if wanted not in ("", "0", "1"):
        raise UserError(f"CNN_JOBS_DOWNLOAD is '{wanted}', but must be 0 or 1")
    return wanted == "1" if wanted else not in_pod()


@contextmanager
def download_timeout(seconds: float = DOWNLOAD_TIMEOUT_S) -> Iterator[None]:
    """A timeout for sockets opened within: torchvision and torch.hub pass none to urllib."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# -- machine, code, packages -----------------------------------------------------------------------------------------


def lineage(device: str, threads: int) -> dict[str, Any]:
    """Where a result comes from, as JSON-ready values: git commit, package versions, machine, command, image."""
    return {
        "git": git_facts(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "device": device,
        "threads": threads,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "image": os.environ.get("CNN_JOBS_CONTAINER_IMAGE", ""),
    }


def git_facts(folder: Path | None = None) -> dict[str, Any]:
    """``commit`` (40 hex digits or "") and ``dirty`` (``None`` for unknown) of the checkout that the package runs from.

    An image has no ``.git``: there ``CNN_JOBS_GIT_COMMIT`` and ``CNN_JOBS_GIT_DIRTY`` (1 or 0) hold them.
    """
    if commit := os.environ.get("CNN_JOBS_GIT_COMMIT"):
        return {"commit": commit, "dirty": {"1": True, "0": False}.get(os.environ.get("CNN_JOBS_GIT_DIRTY", "0"))}
    folder = folder or Path(__file__).resolve().parents[2]
    # A package installed below another project's checkout is not part of that project.
    if not (folder / ".git").exists():
        return {"commit": "", "dirty": None}
    commit, status = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    return {"commit": commit or "", "dirty": None if status is None else bool(status)}


def _git(folder: Path, *args: str) -> str | None:
    """Output of a git command; ``None`` where git is missing, slow or refuses (no commit, foreign owner)."""
    command = ["git", "-C", str(folder), *args]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def cpu_name() -> str:
    """The CPU's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def version_of(package: str) -> str:
    """The installed version of a package, "" where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
