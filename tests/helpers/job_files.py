"""The Job files in ``k8s/``, their parts, and the command that a pod runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from cnn_jobs.cli import COMMANDS, cli
from cnn_jobs.cluster.plans import DISTRIBUTED
from cnn_jobs.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "k8s"
PATHS = sorted(FOLDER.glob("*-job.yaml"))
# All objects of a file; and its Job, which comes first.
OBJECTS: dict[str, list[dict[str, Any]]] = {path.name: list(yaml.safe_load_all(path.read_text())) for path in PATHS}
DOCUMENTS: dict[str, dict[str, Any]] = {name: objects[0] for name, objects in OBJECTS.items()}
DDP = [f"{task}-ddp-job.yaml" for task in DISTRIBUTED]
TRAINING = [*(f"{task}{end}-job.yaml" for task in TASKS for end in ("", "-seeds")), *DDP]
# Kubernetes versions whose schemas the files are validated with.
VERSIONS = tuple(f"1.{minor}" for minor in range(31, 38))
INDEX = "3"
UID = "0c5ce1c2-4ba5-4bb2-8a3c-5b34bb1bcd33"


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
    """Variables with their value, or the path of the field that it comes from."""
    return {
        each["name"]: each["value"] if "value" in each else each["valueFrom"]["fieldRef"]["fieldPath"]
        for each in container_of(job)["env"]
    }


def context_of(job: dict[str, Any]) -> click.Context:
    """The context of the command that the container runs, with all options parsed; nothing is executed."""
    container = container_of(job)
    assert container["command"] == ["cnn-jobs"]
    with cli.make_context("cnn-jobs", list(container["args"])) as context:
        name, command, rest = cli.resolve_command(context, context._protected_args + context.args)
        assert name in COMMANDS
        while isinstance(command, click.Group) and rest:
            name, command, rest = command.resolve_command(context, rest)
        assert command is not None
        assert not isinstance(command, click.Group)
        with command.make_context(name, list(rest), parent=context) as inner:
            return inner


def in_the_pod(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the environment that Kubernetes makes from the manifest, for ``INDEX`` in a Job with indexes."""
    fields = {
        "metadata.labels['batch.kubernetes.io/controller-uid']": UID,
        "metadata.annotations['batch.kubernetes.io/job-completion-index']": INDEX,
        "metadata.name": f"{job['metadata']['name']}-x7k2p",
        "spec.nodeName": "node-1",
    }
    for name in ("CNN_JOBS_STATE_DIR", "CNN_JOBS_CACHE_DIR"):  # set for all tests
        monkeypatch.delenv(name)
    for name, value in env_of(job).items():
        monkeypatch.setenv(name, fields.get(value, value))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    if job["spec"].get("completionMode") == "Indexed":
        monkeypatch.setenv("JOB_COMPLETION_INDEX", INDEX)
