"""Rules of the API server beyond the schema, from kubernetes/pkg/apis/{batch,core}/validation.

For the fields that the Jobs of cnn-jobs use, in 1.31 and later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
VARIABLE = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9]|-(?!-))*(?<!-)")
FIELDS = {"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName"}
FIELDS |= {"status.hostIP", "status.podIP", "status.hostIPs", "status.podIPs"}
KEYED_FIELD = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")
ACTIONS = ("FailJob", "FailIndex", "Ignore", "Count")
UNITS = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def refusals(job: dict[str, Any]) -> list[str]:
    """Rules that the Job violates; none if the API server would accept it."""
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    return [
        *_names(job),
        *_labels(job["metadata"].get("labels", {})),
        *_labels(spec["template"]["metadata"].get("labels", {})),
        *_counts(spec, job["metadata"]["name"]),
        *_failure_policy(spec, pod),
        *_pod(pod),
    ]


def _names(job: dict[str, Any]) -> Iterator[str]:
    for what in ("name", "namespace"):
        if not NAME.fullmatch(job["metadata"][what]) or len(job["metadata"][what]) > 63:
            yield f"metadata.{what}"
    if job["spec"]["template"]["spec"].get("restartPolicy") not in ("Never", "OnFailure"):
        yield "restartPolicy"


def _labels(labels: dict[str, str]) -> Iterator[str]:
    for key, value in labels.items():
        prefix, slash, name = key.rpartition("/")
        if slash and (len(prefix) > 253 or not PREFIX.fullmatch(prefix)):
            yield f"prefix of label {key}"
        if not name or len(name) > 63 or not LABEL.fullmatch(name):
            yield f"label {key}"
        if not isinstance(value, str) or len(value) > 63 or not LABEL.fullmatch(value):
            yield f"value of label {key}"


def _counts(spec: dict[str, Any], name: str) -> Iterator[str]:
    for each in ("backoffLimit", "backoffLimitPerIndex", "completions", "parallelism", "ttlSecondsAfterFinished"):
        if spec.get(each, 0) < 0:
            yield each
    if spec.get("activeDeadlineSeconds", 1) <= 0:
        yield "activeDeadlineSeconds"
    if spec.get("completionMode") == "Indexed":
        if "completions" not in spec or "parallelism" not in spec:
            yield "an Indexed Job without completions or parallelism"
        elif len(f"{name}-{spec['completions'] - 1}") > 63:
            yield "the host name of the last index is too long"
    elif "backoffLimitPerIndex" in spec:
        yield "backoffLimitPerIndex without indexes"
    if "successPolicy" in spec and spec.get("completionMode") != "Indexed":
        yield "successPolicy without indexes"
    if "maxFailedIndexes" in spec and "backoffLimitPerIndex" not in spec:
        yield "maxFailedIndexes without backoffLimitPerIndex"


def _failure_policy(spec: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    rules = spec["podFailurePolicy"]["rules"]
    if pod.get("restartPolicy") != "Never":
        yield "podFailurePolicy without restartPolicy Never"
    if spec.get("podReplacementPolicy", "Failed") != "Failed":
        yield "podFailurePolicy with another podReplacementPolicy than Failed"
    names = {each["name"] for each in pod["containers"]}
    for rule in rules:
        if rule["action"] not in ACTIONS:
            yield "action"
        if rule["action"] == "FailIndex" and "backoffLimitPerIndex" not in spec:
            yield "FailIndex without backoffLimitPerIndex"
        if ("onExitCodes" in rule) == ("onPodConditions" in rule):
            yield "a rule must have either exit codes or conditions"
        codes = rule.get("onExitCodes", {"operator": "In", "values": [1]})
        if codes["operator"] not in ("In", "NotIn"):
            yield "operator"
        if not codes["values"] or codes["values"] != sorted(set(codes["values"])):
            yield "exit codes must be there, in order and different"
        if codes["operator"] == "In" and 0 in codes["values"]:
            yield "exit code 0 is no failure"
        if codes.get("containerName", next(iter(names))) not in names:
            yield "containerName"


def _pod(pod: dict[str, Any]) -> Iterator[str]:
    volumes = [each["name"] for each in pod["volumes"]]
    if len(set(volumes)) < len(volumes) or not all(NAME.fullmatch(each) for each in volumes):
        yield "names of volumes"
    for container in pod["containers"]:
        if not NAME.fullmatch(container["name"]):
            yield "name of a container"
        mounts = [each["mountPath"] for each in container["volumeMounts"]]
        if len(set(mounts)) < len(mounts):
            yield "a path is mounted twice"
        if not {each["name"] for each in container["volumeMounts"]} <= set(volumes):
            yield "a mount without a volume"
        yield from (f"port {port['name']}" for port in container.get("ports", []) if not _is_port(port["name"]))
        yield from _env(container["env"])
        yield from _resources(container["resources"])


def _is_port(name: str) -> bool:
    return len(name) <= 15 and bool(PORT_NAME.fullmatch(name))


def _env(variables: list[dict[str, Any]]) -> Iterator[str]:
    names = [each["name"] for each in variables]
    if len(set(names)) < len(names):
        yield "a variable twice"
    for each in variables:
        if not VARIABLE.fullmatch(each["name"]):
            yield f"name of variable {each['name']}"
        if ("value" in each) == ("valueFrom" in each):
            yield f"{each['name']} must have either a value or a source"
        if "valueFrom" in each:
            path = each["valueFrom"]["fieldRef"]["fieldPath"]
            keyed = KEYED_FIELD.fullmatch(path)
            if path not in FIELDS and not (keyed and not list(_labels({keyed[2]: ""}))):
                yield f"field {path}"


def _resources(resources: dict[str, Any]) -> Iterator[str]:
    requests, limits = resources["requests"], resources["limits"]
    for name, limit in limits.items():
        if quantity(requests.get(name, limit)) > quantity(limit):
            yield f"request of {name} above its limit"
    for name in {*requests, *limits}:
        # Extended resources are whole, and cannot be overcommitted.
        if "/" in name and (requests.get(name, limits.get(name)) != limits.get(name) or limits[name] % 1):
            yield f"request of {name} is not its limit"


def quantity(value: Any) -> float:
    """A number, or one with a unit, in CPUs or bytes."""
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(value)).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]
