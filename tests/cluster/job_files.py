"""The files that are checked in, and what tests ask of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "k8s"
PATHS = sorted(FOLDER.glob("*-job.yaml"))
# Every object of a file; and the Job, which is the first.
OBJECTS: dict[str, list[dict[str, Any]]] = {path.name: list(yaml.safe_load_all(path.read_text())) for path in PATHS}
DOCUMENTS: dict[str, dict[str, Any]] = {name: objects[0] for name, objects in OBJECTS.items()}


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    """The pod template's spec."""
    spec: dict[str, Any] = job["spec"]["template"]["spec"]
    return spec


def container_of(job: dict[str, Any]) -> dict[str, Any]:
    """The only container."""
    (container,) = pod_of(job)["containers"]
    assert isinstance(container, dict)
    return container


def env_of(job: dict[str, Any]) -> dict[str, str]:
    """Variables with their value, or the field that it comes from."""
    return {
        each["name"]: each["value"] if "value" in each else each["valueFrom"]["fieldRef"]["fieldPath"]
        for each in container_of(job)["env"]
    }
