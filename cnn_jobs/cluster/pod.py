"""The pod of a Job: what it may, what it sees, what it needs."""

from __future__ import annotations

from typing import Any

from cnn_jobs.cluster.plans import Plan
from cnn_jobs.cluster.settings import Settings

Manifest = dict[str, Any]

# The user of the image: a number, for Kubernetes cannot tell whether a name is root's.
USER = 10001
METRICS_PORT = 9090
# torch's own choice of a port.
RENDEZVOUS, RENDEZVOUS_PORT = "rendezvous", 29500
# What a cluster sets for all Jobs: a ConfigMap and a Secret of this name, of the stack or of the user.
SHARED = "cnn-jobs"
# What prepare-data alone is told: logins for where the data comes from.
SOURCES = "cnn-jobs-sources"
DATA, STATE, SCRATCH = "/data", "/state", "/tmp"
GPU = "nvidia.com/gpu"
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def pod_spec(plan: Plan, settings: Settings) -> Manifest:
    """``spec.template.spec`` of the Job."""
    tolerations = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 30,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"subdomain": plan.name} if plan.processes > 1 else {}),
        **({"tolerations": tolerations} if _gpus(plan, settings) else {}),
        "containers": [_container(plan, settings)],
        "volumes": [volume for volume, _ in _volumes(plan, settings)],
    }


def has_data_volume(plan: Plan, settings: Settings) -> bool:
    """Whether the Job mounts the data volume."""
    return bool(plan.data and settings.data_claim)


def _gpus(plan: Plan, settings: Settings) -> int:
    return settings.gpus if plan.uses_device else 0


def _state_claim(plan: Plan, settings: Settings) -> str:
    return settings.state_claim if plan.component == "training" else ""


def _container(plan: Plan, settings: Settings) -> Manifest:
    device = ["--device", "cuda" if settings.gpus else "cpu"] if plan.uses_device else []
    shared = {"name": SHARED, "optional": True}
    sources = [{"secretRef": {"name": SOURCES, "optional": True}}] if plan.data == "write" else []
    ports = [{"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"}]
    if plan.processes > 1:
        ports.append({"name": RENDEZVOUS, "containerPort": RENDEZVOUS_PORT, "protocol": "TCP"})
    return {
        "name": plan.container,
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["cnn-jobs"],
        "args": [*plan.args, *device],
        "envFrom": [{"configMapRef": shared}, {"secretRef": shared}, *sources],
        "env": _env(plan, settings),
        **({"ports": ports} if plan.component == "training" else {}),
        "resources": _resources(plan, settings),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [mount for _, mount in _volumes(plan, settings)],
    }


def _env(plan: Plan, settings: Settings) -> list[Manifest]:
    from_field = {
        "CNN_JOBS_JOB_UID": "metadata.labels['batch.kubernetes.io/controller-uid']",
        **({plan.index_variable: INDEX} if plan.indexes else {}),
        "CNN_JOBS_POD": "metadata.name",
        "CNN_JOBS_NODE": "spec.nodeName",
    }
    master = {"MASTER_ADDR": f"{plan.name}-0.{plan.name}", "MASTER_PORT": str(RENDEZVOUS_PORT)}
    values = {
        "CNN_JOBS_CONTAINER_IMAGE": settings.image,
        **({"CNN_JOBS_STATE_DIR": STATE} if plan.keeps_state else {}),
        **({"CNN_JOBS_DURABLE_STATE": "true"} if _state_claim(plan, settings) else {}),
        **({"CNN_JOBS_CACHE_DIR": DATA, "TORCH_HOME": f"{DATA}/torch"} if has_data_volume(plan, settings) else {}),
        "HOME": SCRATCH,
        "MPLCONFIGDIR": f"{SCRATCH}/matplotlib",
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
        **(master if plan.processes > 1 else {}),
        **dict(plan.env),
    }
    return [
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in from_field.items()),
        *({"name": name, "value": value} for name, value in values.items()),
    ]


def _resources(plan: Plan, settings: Settings) -> Manifest:
    needs, gpus = plan.needs, _gpus(plan, settings)
    fixed: Manifest = {"cpu": needs.cpus, "memory": f"{needs.memory_gib}Gi", **({GPU: gpus} if gpus else {})}
    on_node = plan.keeps_state and not _state_claim(plan, settings)
    disk = needs.scratch_gib + (needs.state_gib if on_node else 0)
    return {"requests": {**fixed, "ephemeral-storage": f"{disk}Gi"}, "limits": fixed}


def _volumes(plan: Plan, settings: Settings) -> list[tuple[Manifest, Manifest]]:
    """Each volume, and where the container has it."""
    found: list[tuple[Manifest, Manifest]] = []
    if has_data_volume(plan, settings):
        read_only = {"readOnly": True} if plan.data == "read" else {}
        found.append((_claim("data", settings.data_claim), {"name": "data", "mountPath": DATA, **read_only}))
    if claim := _state_claim(plan, settings):
        found.append((_claim("state", claim), {"name": "state", "mountPath": STATE}))
    elif plan.keeps_state:
        found.append(_empty("state", STATE, plan.needs.state_gib))
    if plan.needs.shared_gib:
        memory, mount = _empty("shm", "/dev/shm", plan.needs.shared_gib)
        memory["emptyDir"] = {"medium": "Memory", **memory["emptyDir"]}
        found.append((memory, mount))
    return [*found, _empty("tmp", SCRATCH, plan.needs.scratch_gib)]


def _claim(name: str, claim: str) -> Manifest:
    return {"name": name, "persistentVolumeClaim": {"claimName": claim}}


def _empty(name: str, path: str, size_gib: int) -> tuple[Manifest, Manifest]:
    return {"name": name, "emptyDir": {"sizeLimit": f"{size_gib}Gi"}}, {"name": name, "mountPath": path}
