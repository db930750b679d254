"""Pods of the rendered Jobs as local processes, with their command, arguments and environment."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cnn_jobs.cluster.manifests import documents
from cnn_jobs.cluster.plans import choose
from cnn_jobs.cluster.settings import Settings
from tests.helpers.kustomize import STACK, Object, find
from tests.helpers.mlflow_pod import BIN
from tests.stack.pod_network import PodNetwork, pod_network

FIELDS = {"spec.nodeName": "the-node"}
# A run takes ten seconds, on a busy machine minutes.
TIMEOUT_S = 400.0
LABEL_UID = "metadata.labels['batch.kubernetes.io/controller-uid']"


def container_of_job(name: str) -> Object:
    """The container of a Job rendered without GPUs."""
    (job,) = documents(choose([name])[0], Settings(gpus=0))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return dict(container)


@dataclass
class JobPod:
    """One pod of a Job. ``disk`` holds its volumes; ``more`` is added to the stack's ConfigMap."""

    job: str
    uid: str
    name: str
    disk: Path
    mlflow_port: int
    more: dict[str, str] = field(default_factory=dict)

    def path(self, inside: str) -> Path:
        """Path on this machine of a path in the pod."""
        return self.disk / inside.strip("/")

    def environment(self) -> dict[str, str]:
        """Kubernetes' variables, those of the ConfigMap, and those of the manifest, which win."""
        fields = {**FIELDS, LABEL_UID: self.uid, "metadata.name": self.name}
        made = {"PATH": f"{BIN}:{os.environ['PATH']}", "KUBERNETES_SERVICE_HOST": "10.96.0.1"}
        made |= find(STACK, "ConfigMap", "cnn-jobs")["data"] | self.more
        for each in container_of_job(self.job)["env"]:
            source = each.get("valueFrom")
            made[each["name"]] = fields[source["fieldRef"]["fieldPath"]] if source else self._here(each["value"])
        return made

    def _here(self, value: str) -> str:
        return str(self.path(value)) if value.startswith("/") else value

    @contextmanager
    def network(self) -> Iterator[PodNetwork]:
        """The pod's network, in which only MLflow can be reached."""
        self.disk.mkdir(parents=True, exist_ok=True)
        with pod_network(self.disk, "mlflow", 5000, ("127.0.0.1", self.mlflow_port)) as network:
            yield network

    @contextmanager
    def start(self, *arguments: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
        """Runs the container during the block, with its output in ``log``; kills it at the end."""
        container = container_of_job(self.job)
        words = [*container["command"], *map(self._here, container["args"]), *arguments]
        for mount in container["volumeMounts"]:
            self.path(mount["mountPath"]).mkdir(parents=True, exist_ok=True)
        with self.network() as network, self.log.open("wb") as out:
            process = subprocess.Popen(
                [*network.words, *words],
                env={**self.environment(), **env},
                cwd=self.path("/tmp"),
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            try:
                yield process
            finally:
                process.kill()
                process.wait(30)

    def run(self, *arguments: str, **env: str) -> int:
        """Runs the container to its end; returns its exit code."""
        with self.start(*arguments, **env) as process:
            return process.wait(TIMEOUT_S)

    @property
    def log(self) -> Path:
        """Output of the container."""
        return self.disk / "log"
