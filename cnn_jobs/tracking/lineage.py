"""Where a result came from: code, packages, machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

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
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({cpu_name()})"


def version_of(package: str) -> str:
    """The installed version of a package, empty where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
