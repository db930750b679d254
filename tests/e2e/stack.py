"""The stack in the cluster: up, ready, down."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.e2e import names, overlay
from tests.e2e.kubectl import Cluster, refuse_what_cannot_start, say
from tests.e2e.settings import Settings
from tests.e2e.tracking import Tracking

# Kinds that no namespace takes along when it goes.
CLUSTER_WIDE = "clusterroles,clusterrolebindings,persistentvolumes,priorityclasses"
OURS = "app.kubernetes.io/part-of=cnn-jobs"


@dataclass
class Stack:
    """``overlay``: the folder of its kustomization; ``folder``: for files of the tests."""

    cluster: Cluster
    settings: Settings
    overlay: Path
    folder: Path
    tracking: Tracking = field(init=False)
    cluster_wide_before: set[str] = field(default_factory=set)
    is_down: bool = False

    def up(self) -> None:
        """As docs/kubernetes-stack.md says: the namespace, the Secret, all else; and then wait."""
        cluster = self.cluster
        say(f"Kubernetes {cluster.version()}, namespace {cluster.namespace}, {self.announcement()}")
        self.cluster_wide_before = self.cluster_wide()
        objects = list(yaml.safe_load_all(cluster.run("kustomize", str(self.overlay)).stdout))
        (namespace,) = [each for each in objects if each["kind"] == "Namespace"]
        cluster.apply(namespace)
        cluster.apply(overlay.secret(self.settings))
        names.open_the_way(cluster, self.settings)
        cluster.run("apply", "-k", str(self.overlay))
        if not self.settings.own_database:
            self.ready("statefulset", "postgres")
        if self.settings.store_in_cluster:
            self.ready("statefulset", "store")
        self.ready("deployment", "mlflow")

    def announcement(self) -> str:
        """What of the stack is not the repository's own."""
        settings = self.settings
        database = "your database" if settings.own_database else "PostgreSQL of the stack"
        if settings.postgres_plain:
            database += ", started by the suite's own script (E2E_POSTGRES_PLAIN)"
        if settings.on_volume:
            return f"{database}; ARTIFACTS ARE ON A VOLUME OF THE MLFLOW POD: no S3 is tried"
        return f"{database}; {'your bucket' if settings.own_s3 else 'S3 server of the overlay'}"

    def ready(self, kind: str, name: str, seconds: float = 600) -> None:
        """Waits for its pod; ends at once where that can never come."""

        def there() -> bool:
            for pod in self.cluster.list("pods", "-l", f"app.kubernetes.io/component={name}"):
                refuse_what_cannot_start(pod)
            status = self.cluster.get(kind, name).get("status", {})
            return bool(status.get("readyReplicas") == 1 and status.get("updatedReplicas", 1) == 1)

        self.cluster.wait(f"{kind} {name}", there, seconds)

    def scale_mlflow(self, replicas: int) -> None:
        """Away, or back and ready."""
        self.cluster.run("scale", "deployment/mlflow", f"--replicas={replicas}")
        if replicas:
            self.ready("deployment", "mlflow")
        else:
            selector = "app.kubernetes.io/component=mlflow"
            self.cluster.wait("the end of MLflow's pod", lambda: not self.cluster.list("pods", "-l", selector), 120)

    def down(self) -> None:
        """Everything deleted, and gone."""
        if self.is_down:
            return
        cluster = self.cluster
        cluster.run("delete", "-k", str(self.overlay), "--ignore-not-found", "--wait=false", check=False)
        cluster.run("delete", "namespace", cluster.namespace, "--ignore-not-found", "--wait=false")
        cluster.wait("the end of the namespace", lambda: cluster.find("namespace", cluster.namespace) is None, 300)
        self.is_down = True

    def volumes(self) -> list[str]:
        """Persistent volumes that belong to claims of the namespace and are meant to go with them."""
        return [
            each["metadata"]["name"]
            for each in self.cluster.list("persistentvolumes")
            if each["spec"].get("claimRef", {}).get("namespace") == self.cluster.namespace
            and each["spec"].get("persistentVolumeReclaimPolicy") == "Delete"
        ]

    def cluster_wide(self) -> set[str]:
        """What is ours and in no namespace."""
        return set(self.cluster.run("get", CLUSTER_WIDE, "-l", OURS, "-o", "name").stdout.split())
