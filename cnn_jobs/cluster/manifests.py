"""Whether the files in a folder are what the registry renders, and where not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cnn_jobs.cluster.plans import SUFFIX, Plan, choose, labels_of
from cnn_jobs.cluster.pod import RENDEZVOUS, RENDEZVOUS_PORT, Manifest, pod_spec
from cnn_jobs.cluster.settings import Settings
from cnn_jobs.cluster.yaml_text import comments, comments_of, header, item_path, key_path, to_yaml
from cnn_jobs.errors import CONTINUE, UserError, from_os_error
from cnn_jobs.system.files import write_text


def companions(plan: Plan, settings: Settings) -> list[Manifest]:
    """The headless Service and the NetworkPolicy, under the Job's name."""
    metadata = {"name": plan.name, "namespace": settings.namespace, "labels": labels_of(plan)}
    # Kubernetes' own label: no manifest can forget it.
    pods = {"batch.kubernetes.io/job-name": plan.name}
    port = {"name": RENDEZVOUS, "port": RENDEZVOUS_PORT, "targetPort": RENDEZVOUS, "protocol": "TCP"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": pods, "ports": [port]},
    }
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": {
            "podSelector": {"matchLabels": pods},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": pods}}]}],
            "egress": [{"to": [{"podSelector": {"matchLabels": pods}}]}],
        },
    }
    return [service, policy]


# A day in which its logs can be read.
TTL_S = 86400


def documents(plan: Plan, settings: Settings) -> list[Manifest]:
    """All objects of a file: the Job, and what its pods find each other by where they train together."""
    return [job(plan, settings), *(companions(plan, settings) if plan.processes > 1 else [])]


def job(plan: Plan, settings: Settings) -> Manifest:
    """The Job."""
    labels = labels_of(plan)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": plan.name, "namespace": settings.namespace, "labels": labels},
        "spec": {
            **_counts(plan),
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _rules(plan)},
            "activeDeadlineSeconds": plan.deadline_s,
            "ttlSecondsAfterFinished": TTL_S,
            "template": {"metadata": {"labels": labels}, "spec": pod_spec(plan, settings)},
        },
    }


def _counts(plan: Plan) -> Manifest:
    if plan.processes > 1:
        return {
            "completionMode": "Indexed",
            "completions": plan.processes,
            "parallelism": plan.processes,
            "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
            "backoffLimit": plan.retries,
        }
    if not plan.indexes:
        return {"backoffLimit": plan.retries}
    return {
        "completionMode": "Indexed",
        "completions": plan.indexes,
        "parallelism": plan.indexes,
        "backoffLimitPerIndex": plan.retries,
    }


def _rules(plan: Plan) -> list[Manifest]:
    def exit_code(code: int) -> Manifest:
        return {"containerName": plan.container, "operator": "In", "values": [code]}

    return [
        {"action": "FailIndex" if plan.indexes else "FailJob", "onExitCodes": exit_code(UserError.exit_code)},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "Ignore", "onExitCodes": exit_code(CONTINUE)},
    ]


def text_of(plan: Plan, settings: Settings) -> str:
    """A file, whole: the same plan and settings give the same text."""
    # The Job is the first of them, and has the comments.
    first, *others = documents(plan, settings)
    parts = [to_yaml(first, comments(plan, settings))]
    parts += [to_yaml(each, comments_of(each["kind"])) for each in others]
    return header(plan, settings) + "---\n".join(parts)


def write_files(plans: Sequence[Plan], settings: Settings, folder: Path) -> list[Path]:
    """Writes each plan's file to ``folder``, whole; returns their paths.

    Raises ``DiskFullError`` (exit 1) or ``StateDirError`` (exit 2) for what the disk refuses.
    """
    return [write_text(folder / plan.file, text_of(plan, settings)) for plan in plans]


AGAIN = "'cnn-jobs manifests render' writes it anew"
_ABSENT = object()


def differences(folder: Path, settings: Settings) -> list[str]:
    """A line for each field, file or comment that is not as it would be rendered; none for no drift.

    Raises ``UserError`` (exit 2) where there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; give that of the files by --out, or run 'cnn-jobs manifests render'"
        )
    plans = {plan.file: plan for plan in choose([], data_volume=bool(settings.data_claim))}
    found = []
    for name, plan in plans.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{path}: missing, expected Job {plan.name}; {AGAIN}")
            continue
        found += compare(path, text_of(plan, settings), documents(plan, settings))
    surplus = sorted(each for each in folder.glob(f"*{SUFFIX}") if each.name not in plans)
    return found + [f"{path}: no Job of the registry has this file; delete it" for path in surplus]


def compare(path: Path, expected_text: str, expected: list[dict[str, Any]]) -> list[str]:
    """The differences of one file."""
    import yaml

    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise from_os_error(error, path, "read") from error
    except UnicodeDecodeError:
        return [f"{path}: is no text in UTF-8, expected a Job; {AGAIN}"]
    if text == expected_text:
        return []
    try:
        # libyaml's, where PyYAML was built with it: ten times as fast.
        contents = list(yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        return [f"{path}: cannot be read as YAML ({' '.join(str(error).split())[:200]}); {AGAIN}"]
    if len(contents) != len(expected):
        return [f"{path}: holds {len(contents)} documents, expected {len(expected)}; {AGAIN}"]
    found = []
    for number, (theirs, ours) in enumerate(zip(contents, expected, strict=True)):
        found += [f"{path}: {line}; {AGAIN}" for line in _fields(f"[{number}]" if number else "", theirs, ours)]
    return found or [f"{path}: {_first_line(text, expected_text)}; {AGAIN}"]


def _fields(path: str, found: Any, expected: Any) -> Iterator[str]:
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        for key in dict.fromkeys([*expected, *found]):
            yield from _fields(key_path(path, str(key)), found.get(key, _ABSENT), expected.get(key, _ABSENT))
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for index, (theirs, ours) in enumerate(zip(found, expected, strict=True)):
            yield from _fields(item_path(path, index, ours), theirs, ours)
    # Compared with their types: true is not 1, and "1" is not 1.
    elif type(found) is not type(expected) or found != expected:
        yield f"{path or 'the document'}: expected {_shown(expected)}, found {_shown(found)}"


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:100]}..."


def _first_line(text: str, expected: str) -> str:
    """Where two texts with the same fields first differ: a comment, an order, a quote, the end of a line."""
    lines = zip_longest(text.splitlines(keepends=True), expected.splitlines(keepends=True), fillvalue="")
    number, theirs, ours = next((number, *pair) for number, pair in enumerate(lines, start=1) if pair[0] != pair[1])
    return f"line {number}: the fields are the same, its text is not: expected {_shown(ours)}, found {_shown(theirs)}"
