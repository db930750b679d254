"""The stack in the cluster: create it, wait for it, delete it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.e2e import names, overlay
from tests.e2e.kubectl import Cluster, check_can_start, log
from tests.e2e.settings import Settings
from tests.e2e.tracking import Tracking

# Kinds that are not deleted with a namespace.
CLUSTER_WIDE = "clusterroles,clusterrolebindings,persistentvolumes,priorityclasses"
OURS = "app.kubernetes.io/part-of=cnn-jobs"


@dataclass
class Stack:
    """``overlay``: folder of its kustomization; ``folder``: for files of the tests."""

    cluster: Cluster
    settings: Settings
    overlay: Path
    folder: Path
    tracking: Tracking = field(init=False)
    cluster_wide_before: set[str] = field(default_factory=set)
    is_down: bool = False

    def up(self) -> None:
        """As in docs/kubernetes-stack.md: creates the namespace, the Secret, everything else; then waits."""
        cluster = self.cluster
        log(f"Kubernetes {cluster.version()}, namespace {cluster.namespace}, {self.announcement()}")
        self.cluster_wide_before = self.cluster_wide()
        objects = list(yaml.safe_load_all(cluster.run("kustomize", str(self.overlay)).stdout))
        (namespace,) = [each for each in objects if each["kind"] == "Namespace"]
        cluster.apply(namespace)
        cluster.apply(overlay.secret(self.settings))
        names.allow_dns(cluster, self.settings)
        cluster.run("apply", "-k", str(self.overlay))
        if not self.settings.own_database:
            self.ready("statefulset", "postgres")
        if self.settings.store_in_cluster:
            self.ready("statefulset", "store")
        self.ready("deployment", "mlflow")

    def announcement(self) -> str:
        """The parts of the stack that differ from the repository's."""
        settings = self.settings
        database = "your database" if settings.own_database else "PostgreSQL of the stack"
        if settings.postgres_plain:
            database += ", started by the suite's own script (E2E_POSTGRES_PLAIN)"
        if settings.on_volume:
            return f"{database}; ARTIFACTS ARE ON A VOLUME OF THE MLFLOW POD: S3 is not tested"
        return f"{database}; {'your bucket' if settings.own_s3 else 'S3 server of the overlay'}"

    def ready(self, kind: str, name: str, seconds: float = 600) -> None:
        """Waits for its pod; fails at once if the pod cannot start."""

        def there() -> bool:
            for pod in self.cluster.list("pods", "-l", f"app.kubernetes.io/component={name}"):
                check_can_start(pod)
            status = self.cluster.get(kind, name).get("status", {})
            return bool(status.get("readyReplicas") == 1 and status.get("updatedReplicas", 1) == 1)

        self.cluster.wait(f"{kind} {name}", there, seconds)

    def scale_mlflow(self, replicas: int) -> None:
        """Stops MLflow (0), or starts it and waits until it is ready (1)."""
        self.cluster.run("scale", "deployment/mlflow", f"--replicas={replicas}")
        if replicas:
            self.ready("deployment", "mlflow")
        else:
            selector = "app.kubernetes.io/component=mlflow"
            self.cluster.wait("the end of MLflow's pod", lambda: not self.cluster.list("pods", "-l", selector), 120)

    def down(self) -> None:
        """Deletes everything, and waits until it is gone."""
        if self.is_down:
            return
        cluster = self.cluster
        cluster.run("delete", "-k", str(self.overlay), "--ignore-not-found", "--wait=false", check=False)
        cluster.run("delete", "namespace", cluster.namespace, "--ignore-not-found", "--wait=false")
        cluster.wait("the end of the namespace", lambda: cluster.find("namespace", cluster.namespace) is None, 300)
        self.is_down = True

    def volumes(self) -> list[str]:
        """Persistent volumes of the namespace's claims that are deleted with them."""
        return [
            each["metadata"]["name"]
            for each in self.cluster.list("persistentvolumes")
            if each["spec"].get("claimRef", {}).get("namespace") == self.cluster.namespace
            and each["spec"].get("persistentVolumeReclaimPolicy") == "Delete"
        ]

    def cluster_wide(self) -> set[str]:
        """Cluster-wide objects of cnn-jobs."""
        return set(self.cluster.run("get", CLUSTER_WIDE, "-l", OURS, "-o", "name").stdout.split())
