"""Where this process runs, as Kubernetes' environment variables tell it."""

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
from typing import TYPE_CHECKING, Any

from cnn_jobs.errors import UserError

if TYPE_CHECKING:
    import torch


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


TIMEOUT_S = 30.0


@contextmanager
def with_timeout(seconds: float = TIMEOUT_S) -> Iterator[None]:
    """A network that swallows packets ends the wait: torchvision and torch.hub pass no timeout to urllib."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


PACKAGES = ("cnn-jobs", "torch", "torchvision", "mlflow", "numpy", "pillow")


def collect(device: torch.device, threads: int) -> dict[str, Any]:
    """Git commit and state, package versions, device, threads, machine: JSON-ready, a key a fact."""
    return {
        "git": git_facts(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "device": device_name(device),
        "threads": threads,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "image": os.environ.get("CNN_JOBS_CONTAINER_IMAGE", ""),
    }


def git_facts(folder: Path | None = None) -> dict[str, Any]:
    """``commit`` (40 hex digits or empty) and ``dirty`` of the checkout that the package runs from.

    An image has no ``.git``: there ``CNN_JOBS_GIT_COMMIT`` and ``CNN_JOBS_GIT_DIRTY`` (1 or 0) say it, empty where the
    build was not told.
    """
    if commit := os.environ.get("CNN_JOBS_GIT_COMMIT"):
        return {"commit": commit, "dirty": {"1": True, "0": False}.get(os.environ.get("CNN_JOBS_GIT_DIRTY", "0"))}
    folder = folder or Path(__file__).resolve().parents[2]
    # A package installed below some other project's checkout is not of that project.
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
    """The CPU's model as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def device_name(device: torch.device) -> str:
    """The device that trained, as its maker calls it."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({cpu_name()})"


def version_of(package: str) -> str:
    """The installed version of a package, empty where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
