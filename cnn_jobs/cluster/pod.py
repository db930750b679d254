"""The pod of a Job: permissions, tolerations, environment, resources, volumes, each with its comment in the file."""

from __future__ import annotations

from typing import Any

from cnn_jobs.cluster.plans import Plan
from cnn_jobs.cluster.settings import Settings
from cnn_jobs.cluster.yaml_writer import Commented

Manifest = dict[str, Any]

# The image's user, as a number: Kubernetes cannot tell whether a name is root's.
USER = 10001
METRICS_PORT = 9090
# The port is torch's default.
RENDEZVOUS, RENDEZVOUS_PORT = "rendezvous", 29500
# ConfigMap and Secret with a cluster's settings for all Jobs, from the stack or from the user.
SHARED = "cnn-jobs"
# Secret with logins for the sources of the data, for prepare-data only.
SOURCES = "cnn-jobs-sources"
DATA, STATE, SCRATCH = "/data", "/state", "/tmp"
GPU = "nvidia.com/gpu"
UID_FIELD = "metadata.labels['batch.kubernetes.io/controller-uid']"
INDEX_FIELD = "metadata.annotations['batch.kubernetes.io/job-completion-index']"

_GRACE = "GKE Spot grants 15 s."
_ARGS = {
    "interpret": "The network is ResNet18 with ImageNet's weights, the picture is generated. CNN_JOBS_RUN (id of a "
    "run of cnn-jobs) and CNN_JOBS_IMAGE (a file on the data volume) in the ConfigMap select others.",
    "report": "The experiment is CNN_JOBS_EXPERIMENT of the ConfigMap, as for trainings, else cnn-jobs.",
}


def pod_spec(plan: Plan, settings: Settings) -> Manifest:
    """``spec.template.spec`` of the Job."""
    volumes = _volumes(plan, settings)
    subdomain = Commented("Gives each pod a DNS name below the Service's: NAME-0 is rank 0.", plan.name)
    tolerations = Commented(
        "GPU nodes often repel other pods by this taint.", [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    )
    grace = (
        f"From SIGTERM to the exit takes less than 10 s: first the checkpoint, then as much as MLflow accepts. {_GRACE}"
        if plan.trains
        else f"There is nothing to save. {_GRACE}"
    )
    return {
        "restartPolicy": Commented("One pod per attempt; podFailurePolicy requires it.", "Never"),
        "terminationGracePeriodSeconds": Commented(grace, 30),
        "automountServiceAccountToken": Commented("The pod never calls the Kubernetes API.", False),
        "enableServiceLinks": Commented(
            "Otherwise a Service named mlflow adds MLFLOW_PORT=tcp://... to the environment, which MLflow reads as its "
            "own setting.",
            False,
        ),
        "securityContext": Commented(
            "Pod Security 'restricted'. The user is a number, because Kubernetes cannot tell whether a name is root. A "
            "new volume belongs to root: fsGroup makes it writable for this user.",
            {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        ),
        **({"subdomain": subdomain} if plan.distributed else {}),
        **({"tolerations": tolerations} if _gpus(plan, settings) else {}),
        "containers": [_container(plan, settings, [mount for _, mount in volumes])],
        "volumes": [volume for volume, _ in volumes],
    }


def _gpus(plan: Plan, settings: Settings) -> int:
    return settings.gpus if plan.uses_device else 0


def _state_claim(plan: Plan, settings: Settings) -> str:
    return settings.state_claim if plan.trains else ""


def _data_claim(plan: Plan, settings: Settings) -> str:
    return settings.data_claim if plan.data else ""


def _container(plan: Plan, settings: Settings, mounts: list[Any]) -> Manifest:
    device = ["--device", "cuda" if settings.gpus else "cpu"] if plan.uses_device else []
    args_comment = _ARGS.get(plan.component, "")
    if _gpus(plan, settings):
        args_comment = "--device cuda: if the GPU cannot be used, exit at once with code 2 instead of training on CPUs."
    ports = [{"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"}]
    if plan.distributed:
        ports.append({"name": RENDEZVOUS, "containerPort": RENDEZVOUS_PORT, "protocol": "TCP"})
    ports_field = Commented("k8s/monitoring/podmonitor.yaml scrapes the port of this name.", ports)
    return {
        "name": plan.container,
        "image": settings.image,
        "imagePullPolicy": Commented(
            "A version never changes, and an image that was loaded onto the nodes is used.", "IfNotPresent"
        ),
        "command": ["cnn-jobs"],
        "args": Commented(args_comment, [*plan.args, *device]),
        "envFrom": _env_from(plan),
        "env": Commented("Set by this manifest; overrides envFrom.", _env(plan, settings)),
        **({"ports": ports_field} if plan.trains else {}),
        "resources": _resources(plan, settings),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": Commented(
            "After a failure 'kubectl describe pod' shows the last lines of the log.", "FallbackToLogsOnError"
        ),
        "volumeMounts": mounts,
    }


def _env_from(plan: Plan) -> Commented:
    comment = (
        "A cluster's settings for all Jobs: MLFLOW_TRACKING_URI, CNN_JOBS_EXPERIMENT, CNN_JOBS_DATA, proxies. Without "
        "them the program uses its defaults for pods: MLflow is http://mlflow:5000."
    )
    shared = {"name": SHARED, "optional": True}
    sources: list[Manifest] = [{"configMapRef": shared}, {"secretRef": shared}]
    if plan.data == "write":
        comment += (
            " Where the data comes from: CNN_JOBS_CIFAR10_FROM and CNN_JOBS_IMAGENET_FROM (a mirror, or "
            "s3://bucket/key); logins for it in the Secret cnn-jobs-sources, which no other Job reads."
        )
        sources.append({"secretRef": {"name": SOURCES, "optional": True}})
    return Commented(comment, sources)


def _env(plan: Plan, settings: Settings) -> list[Commented]:
    def field(name: str, path: str, comment: str = "") -> Commented:
        return Commented(comment, {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})

    def value(name: str, text: str, comment: str = "") -> Commented:
        return Commented(comment, {"name": name, "value": text})

    env = [field("CNN_JOBS_JOB_UID", UID_FIELD, _run_key_comment(plan))]
    if plan.indexes:
        env.append(field(plan.index_variable, INDEX_FIELD, "The index is the seed."))
    env += [
        field("CNN_JOBS_POD", "metadata.name"),
        field("CNN_JOBS_NODE", "spec.nodeName"),
        value("CNN_JOBS_CONTAINER_IMAGE", settings.image, "For the lineage: a pod does not know its image."),
    ]
    if plan.keeps_state:
        env.append(value("CNN_JOBS_STATE_DIR", STATE))
    if _state_claim(plan, settings):
        env.append(value("CNN_JOBS_DURABLE_STATE", "true"))
    if _data_claim(plan, settings):
        env += [value("CNN_JOBS_CACHE_DIR", DATA), value("TORCH_HOME", f"{DATA}/torch")]
    env += [
        value("HOME", SCRATCH, "The root file system is read-only."),
        value("MPLCONFIGDIR", f"{SCRATCH}/matplotlib"),
        value(
            "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD",
            "false",
            "Artifacts go through the MLflow server in both directions: otherwise the client uses the object store "
            "behind it, which this pod cannot reach.",
        ),
        value("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false"),
    ]
    if plan.distributed:
        rank_0 = f"{plan.name}-0.{plan.name}"
        env += [
            value("MASTER_ADDR", rank_0, "Rank 0 of this Job, through the Service below."),
            value("MASTER_PORT", str(RENDEZVOUS_PORT)),
        ]
    return env + [value(name, text) for name, text in plan.env]


def _run_key_comment(plan: Plan) -> str:
    if plan.distributed:
        return "Key of the run that all pods of this Job train together; JOB_COMPLETION_INDEX is the rank."
    if plan.indexes:
        return "With JOB_COMPLETION_INDEX, set by Kubernetes, the key of a run: all pods of an index are its attempts."
    return "Key of the run: all pods of this Job are its attempts." if plan.trains else ""


def _resources(plan: Plan, settings: Settings) -> Commented:
    comment = f"{plan.resources.why} Requests equal limits: the pod is among the last to be evicted."
    if plan.trains:
        comment += " torch uses one thread per CPU of the limit; only with as many is a resumed run bit-identical."
    needs, gpus = plan.resources, _gpus(plan, settings)
    fixed: Manifest = {"cpu": needs.cpus, "memory": f"{needs.memory_gib}Gi", **({GPU: gpus} if gpus else {})}
    on_node = plan.keeps_state and not _state_claim(plan, settings)
    disk = needs.scratch_gib + (needs.state_gib if on_node else 0)
    return Commented(comment, {"requests": {**fixed, "ephemeral-storage": f"{disk}Gi"}, "limits": fixed})


def _volumes(plan: Plan, settings: Settings) -> list[tuple[Any, Any]]:
    """Each volume with its mount in the container."""

    def mount(name: str, path: str) -> Manifest:
        return {"name": name, "mountPath": path}

    def claim(name: str, of: str) -> Manifest:
        return {"name": name, "persistentVolumeClaim": {"claimName": of}}

    def empty(name: str, size_gib: int, **medium: str) -> Manifest:
        return {"name": name, "emptyDir": {**medium, "sizeLimit": f"{size_gib}Gi"}}

    found: list[tuple[Any, Any]] = []
    if of := _data_claim(plan, settings):
        mounted: Any = mount("data", DATA)
        if plan.data == "read":
            comment = "Filled once by prepare-data-job.yaml; this pod downloads nothing."
            mounted = Commented(comment, {**mounted, "readOnly": True})
        found.append((claim("data", of), mounted))
    if of := _state_claim(plan, settings):
        comment = "Outlives the pod: the next one finds checkpoints and journal in place."
        found.append((Commented(comment, claim("state", of)), mount("state", STATE)))
    elif plan.keeps_state:
        comment = (
            "Deleted with the pod; the next one restores from MLflow what MLflow has of the run. To keep all of it: "
            "'cnn-jobs manifests render --state-claim NAME'."
            if plan.trains
            else "For records that MLflow has not taken yet; deleted with the pod."
        )
        found.append((Commented(comment, empty("state", plan.resources.state_gib)), mount("state", STATE)))
    if plan.resources.shared_gib:
        comment = "NCCL's buffers; the default is 64 MiB. Counts as memory."
        shared = empty("shm", plan.resources.shared_gib, medium="Memory")
        found.append((Commented(comment, shared), mount("shm", "/dev/shm")))
    return [*found, (empty("tmp", plan.resources.scratch_gib), mount("tmp", SCRATCH))]
