"""Plain data as YAML for people: in the given order, short lists on one line, comments above what they explain."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from cnn_jobs.cluster.plans import Plan
from cnn_jobs.cluster.settings import Settings

WIDTH = 118
# Words, paths, options; and quantities. Everything else is quoted: parsers do not agree on what is a number or a date.
_PLAIN = re.compile(r"[A-Za-z/][\w./-]*(?:[:=][\w./-]+)*|--[a-z][a-z-]*|[0-9]+(?:Mi|Gi|m)", flags=re.ASCII)
# What some parser of YAML 1.1 takes for no string.
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def to_yaml(content: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """One document. ``comments``: path, as ``item_path`` and ``key_path`` make it, to text.

    Raises ``ValueError`` for a comment of a path that is not there.
    """
    left = dict(comments)
    text = "".join(f"{line}\n" for line in _mapping(content, "", 0, left))
    if left:
        raise ValueError(f"comments of nothing: {', '.join(left)}")
    return text


def key_path(path: str, key: str) -> str:
    """The path of a mapping's value."""
    return f"{path}.{key}" if path else key


def item_path(path: str, index: int, item: Any) -> str:
    """The path of a list's item: by its name where it has one, else by its number."""
    name = item.get("name") if isinstance(item, Mapping) else None
    return f"{path}[{name if isinstance(name, str) else index}]"


def _mapping(content: Mapping[str, Any], path: str, depth: int, comments: dict[str, str]) -> Iterator[str]:
    for key, value in content.items():
        here = key_path(path, key)
        yield from _comment(here, depth, comments)
        yield from _entry(f"{'  ' * depth}{_scalar(key)}:", value, here, depth, comments)


def _entry(start: str, value: Any, path: str, depth: int, comments: dict[str, str]) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        yield start
        yield from _mapping(value, path, depth + 1, comments)
    elif isinstance(value, list) and value and any(isinstance(item, Mapping) for item in value):
        yield start
        for index, item in enumerate(value):
            yield from _item(item, item_path(path, index, item), depth + 1, comments)
    else:
        yield f"{start} {_flow(value)}"


def _item(item: Any, path: str, depth: int, comments: dict[str, str]) -> Iterator[str]:
    yield from _comment(path, depth, comments)
    if not isinstance(item, Mapping) or not item:
        yield f"{'  ' * depth}- {_flow(item)}"
        return
    lines = list(_mapping(item, path, depth + 1, comments))
    # The dash takes the place of the first key's indentation.
    yield f"{'  ' * depth}- {lines[0].lstrip()}"
    yield from lines[1:]


def _comment(path: str, depth: int, comments: dict[str, str]) -> Iterator[str]:
    indent = "  " * depth
    for line in textwrap.wrap(comments.pop(path, ""), WIDTH - len(indent) - 2, break_on_hyphens=False):
        yield f"{indent}# {line}"


def _flow(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_scalar(item) for item in value)}]"
    return "{}" if isinstance(value, Mapping) else _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    # JSON is YAML, but for its way to escape what is beyond U+FFFF.
    text = json.dumps(value, ensure_ascii=False)
    return "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in text)


Comments = dict[str, str]
POD = "spec.template.spec"
RULES = "spec.podFailurePolicy.rules"

_NEVER = "2: it can never work as asked (a bad option, missing or damaged data, a training that diverged)."
_GRACE = "GKE Spot grants 15."
_JOB = {
    "spec.podReplacementPolicy": "The next pod starts when the one before is gone, never beside it: a run has one "
    "attempt at a time. With a podFailurePolicy no other value is legal.",
    "spec.podFailurePolicy": "The first rule that fits decides; what fits none is a failure that counts: exit code 1, "
    "out of memory (137), eviction for going over a limit of its own.",
    f"{RULES}[0]": f"{_NEVER} First, so that a disruption at the same moment does not bring it back.",
    f"{RULES}[1]": "Preempted, evicted, or its node drained or gone: no fault of the run's.",
    f"{RULES}[2]": "75 asks for the next pod, as in every Job.",
    "spec.activeDeadlineSeconds": "Of the whole Job, waiting for a node included: what would go on for ever ends.",
    "spec.ttlSecondsAfterFinished": "A day to read the logs; then it deletes itself. Results are in MLflow.",
    "spec.template.metadata.labels": "Network policies, and the PodMonitor for training pods, select by these.",
}
_TRAINING_JOB = {
    f"{RULES}[2]": "75: what it did is kept, the next pod goes on. Not counted, however often: only an attempt that "
    "brought the run further ends so, and activeDeadlineSeconds is behind it.",
}
_DOCUMENT_JOB = {
    f"{RULES}[2]": "75 asks for the next pod, as in every Job. What MLflow did not take goes with this pod, so it ends "
    "with 1 then, which counts."
}
_DATA_JOB = {"spec.ttlSecondsAfterFinished": "A day to read the logs; then it deletes itself. The volume stays."}
_SEEDS_JOB = {
    "spec.completions": "One index a seed: index 3 trains with seed 3 and is a run of its own. More seeds later: raise "
    "completions and parallelism together; fewer at a time: lower parallelism. Both by 'kubectl patch', also while it "
    "runs.",
    "spec.backoffLimitPerIndex": "Of each seed for itself. No backoffLimit and no maxFailedIndexes: no seed ends "
    "because others failed.",
    f"{RULES}[0]": f"{_NEVER} FailIndex, not FailJob: where one seed diverges, the others go on; and what is wrong for "
    "all of them ends each at its first attempt.",
}

_DDP_JOB = {
    "spec.completions": "One process a pod, all of one run, whose batch they share. completions, parallelism and "
    "--world-size are the same number.",
    "spec.successPolicy": "Rank 0 records the run and ends with 0 when it is finished; nobody else is needed then.",
    "spec.backoffLimit": "Of all pods together. One that lost another ends with 75 once there is progress: uncounted.",
}
_DDP_POD = {"subdomain": "Gives each pod a name below the Service's: NAME-0 is rank 0."}
_SERVICE = {
    "spec.clusterIP": "Headless: names of pods, no address of its own.",
    "spec.publishNotReadyAddresses": "The pods look for each other before any of them is ready for anything.",
}
_POLICY = {"spec.ingress": "gloo and NCCL talk on ports that nobody knows beforehand: all, among the pods of this Job."}

_POD = {
    "restartPolicy": "A pod an attempt: podFailurePolicy needs it.",
    "terminationGracePeriodSeconds": f"Nothing has to be saved. {_GRACE}",
    "automountServiceAccountToken": "It never talks to the Kubernetes API.",
    "enableServiceLinks": "Else a Service named mlflow puts MLFLOW_PORT=tcp://... into the environment, which MLflow "
    "takes for a setting of its own.",
    "securityContext": "Pod Security 'restricted'. The user is a number: of a name Kubernetes cannot tell whether it "
    "is root. A new volume belongs to root: fsGroup makes it writable for this user.",
}
_TRAINING_POD = {
    "terminationGracePeriodSeconds": "From SIGTERM to the exit it takes less than 10 s: the checkpoint first, then "
    f"what MLflow takes. {_GRACE}",
}
_STATE = "For what MLflow has not taken yet; goes with the pod."
_STATE_OF_RUN = (
    "Goes with the pod; what MLflow has of the run comes back from there. To keep all of it: 'cnn-jobs manifests "
    "render --state-claim NAME'."
)
_STATE_THAT_STAYS = "Outlives the pod: the next one finds checkpoints and journal where they were."

_CONTAINER = {
    "imagePullPolicy": "A version stays what it is; and one that was loaded onto the nodes by hand is found.",
    "envFrom": "What a cluster sets for all Jobs: MLFLOW_TRACKING_URI, CNN_JOBS_EXPERIMENT, CNN_JOBS_DATA, proxies. "
    "Without them the program's own defaults for pods hold: MLflow is http://mlflow:5000.",
    "env": "What belongs to this manifest; it wins over envFrom.",
    "env[CNN_JOBS_CONTAINER_IMAGE]": "For the lineage: a pod is not told its own image.",
    "env[HOME]": "The root file system is read-only.",
    "env[MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD]": "Artifacts go through MLflow, both ways: else the client takes them "
    "from the object store behind it, which this pod does not reach.",
    "terminationMessagePolicy": "The last lines of the log are in 'kubectl describe pod' after a failure.",
}
_KEY = "All pods of this Job are attempts of one run, whose key this is."
_KEY_OF_INDEX = (
    "With JOB_COMPLETION_INDEX, which Kubernetes sets, the key of a run: all pods of an index are its attempts."
)
_KEY_OF_ALL = "All pods of this Job train one run, whose key this is; JOB_COMPLETION_INDEX is the rank."
_MASTER = "Rank 0 of this Job, by the Service below."
_SHARED = "NCCL's buffers; the default is 64 MiB. Counts as memory."
_METRICS = "k8s/monitoring/podmonitor.yaml scrapes the port of this name."
_GUARANTEED = "Requests are limits: the pod is among the last to be evicted."
_THREADS = (
    "torch takes as many threads as the CPU limit, and only with as many is a run that goes on the same in every bit."
)
_READ_ONLY = "Filled once by prepare-data-job.yaml; this pod downloads nothing."
_SOURCES = (
    "Where the data comes from: CNN_JOBS_CIFAR10_FROM and CNN_JOBS_IMAGENET_FROM (a mirror, or s3://bucket/key); "
    "logins for that in the Secret cnn-jobs-sources, which no other Job reads."
)
_CUDA = "--device cuda: where the GPU cannot be used it ends at once with exit code 2, in place of training on CPUs."
_ARGS = {
    "interpret": "The network is ResNet18 with ImageNet's weights, the picture one that is drawn. Others: CNN_JOBS_RUN "
    "(the id of a run of ours), CNN_JOBS_IMAGE (a file on the data volume), in the ConfigMap.",
    "report": "The experiment is CNN_JOBS_EXPERIMENT of the ConfigMap, as for trainings, else cnn-jobs.",
}


def header(plan: Plan, settings: Settings) -> str:
    """The first lines of a file: what it is, and how it is used."""
    kubectl = f"kubectl -n {settings.namespace}"
    several = plan.indexes or plan.processes > 1
    pods = f"-l batch.kubernetes.io/job-name={plan.name} --prefix" if several else f"job/{plan.name}"
    untried = "Training on several GPUs was not run so far: docs/distributed.md."
    lines = [
        f"{plan.title}.",
        "",
        *([untried, ""] if plan.processes > 1 else []),
        "Rendered by 'cnn-jobs manifests render' from the registry of tasks: do not edit it, for 'cnn-jobs manifests",
        "check' refuses what differs. docs/kubernetes-jobs.md says what can be set without editing.",
        "",
        f"  kubectl apply -f {plan.file}",
        f"  {kubectl} logs -f {pods}",
        "",
        f"A Job runs once: '{kubectl} delete job {plan.name}' before it is applied again.",
    ]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def comments(plan: Plan, settings: Settings) -> Comments:
    """Path of a field (list items by their name, else by number) to the text above it."""
    found = {**_JOB, **(_SEEDS_JOB if plan.indexes else {}), **(_DDP_JOB if plan.processes > 1 else {})}
    if plan.component == "training":
        found |= _TRAINING_JOB
    elif plan.component in ("report", "interpret"):
        found |= _DOCUMENT_JOB
    elif plan.component == "data":
        found |= _DATA_JOB
    found |= _below(POD, _of_the_pod(plan, settings))
    return found | _below(f"{POD}.containers[{plan.container}]", _of_the_container(plan, settings))


def comments_of(kind: str) -> Comments:
    """Of an object that goes with the Job."""
    return {"Service": _SERVICE, "NetworkPolicy": _POLICY}[kind]


def _below(path: str, found: Comments) -> Comments:
    return {f"{path}.{name}": text for name, text in found.items()}


def _of_the_pod(plan: Plan, settings: Settings) -> Comments:
    found = {**_POD}
    if plan.uses_device and settings.gpus:
        found["tolerations"] = "GPU nodes often keep other pods away by this taint."
    if plan.component == "training":
        found |= _TRAINING_POD
        found["volumes[state]"] = _STATE_THAT_STAYS if settings.state_claim else _STATE_OF_RUN
    elif plan.keeps_state:
        found["volumes[state]"] = _STATE
    if plan.processes > 1:
        found |= _DDP_POD
        found["volumes[shm]"] = _SHARED
    return found


def _of_the_container(plan: Plan, settings: Settings) -> Comments:
    found = {**_CONTAINER, "resources": f"{plan.needs.why} {_GUARANTEED}"}
    if plan.component == "training":
        found["env[CNN_JOBS_JOB_UID]"] = _KEY_OF_INDEX if plan.indexes else _KEY
        if plan.processes > 1:
            found["env[CNN_JOBS_JOB_UID]"] = _KEY_OF_ALL
            found["env[MASTER_ADDR]"] = _MASTER
        found["ports"] = _METRICS
        found["resources"] += f" {_THREADS}"
    if plan.indexes:
        found[f"env[{plan.index_variable}]"] = "The index is the seed."
    if plan.data == "read" and settings.data_claim:
        found["volumeMounts[data]"] = _READ_ONLY
    if plan.data == "write":
        found["envFrom"] += f" {_SOURCES}"
    if plan.uses_device and settings.gpus:
        found["args"] = _CUDA
    elif plan.component in _ARGS:
        found["args"] = _ARGS[plan.component]
    return found
