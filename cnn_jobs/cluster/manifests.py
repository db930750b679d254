"""The manifest of a Job: its file, with everything that is applied together, each field with its comment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from cnn_jobs.cluster.plans import SUFFIX, Plan, choose
from cnn_jobs.cluster.pod import RENDEZVOUS, RENDEZVOUS_PORT, Manifest, pod_spec
from cnn_jobs.cluster.settings import Settings
from cnn_jobs.cluster.yaml_writer import Commented, plain, to_yaml
from cnn_jobs.errors import CONTINUE, UserError, from_os_error
from cnn_jobs.system.files import write_text

# A day, in which its logs can be read.
TTL_S = 86400
RENDER = "'cnn-jobs manifests render' rewrites it"

_NEVER = "2: the request can never work (bad option, missing or damaged data, diverged training)."
_IGNORED = "75 requests another pod, as in every Job."
_CONTINUE_COMMENT = {
    "training": "75: progress is saved, the next pod resumes. Never counts, because an attempt exits so only after "
    "progress; activeDeadlineSeconds limits all attempts together.",
    "report": f"{_IGNORED} Records that MLflow did not accept are lost with this pod, so it exits with 1 then, which "
    "counts.",
}
_CONTINUE_COMMENT["interpret"] = _CONTINUE_COMMENT["report"]


def documents(plan: Plan, settings: Settings) -> list[Manifest]:
    """All objects of a file: the Job; for distributed training also its Service and NetworkPolicy."""
    return [plain(each) for each in _commented(plan, settings)]


def text_of(plan: Plan, settings: Settings) -> str:
    """The text of a Job's file; the same plan and settings give the same text."""
    return _header(plan, settings) + "---\n".join(map(to_yaml, _commented(plan, settings)))


def write_files(plans: Sequence[Plan], settings: Settings, folder: Path) -> list[Path]:
    """Writes each plan's file to ``folder``, atomically; returns their paths.

    Raises ``DiskFullError`` (exit 1) or ``StateDirError`` (exit 2) where a file cannot be written.
    """
    return [write_text(folder / plan.file, text_of(plan, settings)) for plan in plans]


def _header(plan: Plan, settings: Settings) -> str:
    """The first lines of a file: what it is, and how it is used."""
    kubectl = f"kubectl -n {settings.namespace}"
    several = plan.indexes or plan.distributed
    pods = f"-l batch.kubernetes.io/job-name={plan.name} --prefix" if several else f"job/{plan.name}"
    untested = "Training on several GPUs has not been run yet: docs/distributed.md."
    lines = [
        f"{plan.title}.",
        "",
        *([untested, ""] if plan.distributed else []),
        "Rendered by 'cnn-jobs manifests render' from the registry of tasks; do not edit: 'cnn-jobs manifests check'",
        "reports any difference. docs/kubernetes-jobs.md lists what can be set without editing.",
        "",
        f"  kubectl apply -f {plan.file}",
        f"  {kubectl} logs -f {pods}",
        "",
        f"A Job runs once: '{kubectl} delete job {plan.name}' before it is applied again.",
    ]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def _commented(plan: Plan, settings: Settings) -> list[Manifest]:
    return [_job(plan, settings), *(_ddp_objects(plan, settings) if plan.distributed else [])]


def _job(plan: Plan, settings: Settings) -> Manifest:
    rest = "The volume stays." if plan.component == "data" else "Results are in MLflow."
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": plan.name, "namespace": settings.namespace, "labels": plan.labels},
        "spec": {
            **_counts(plan),
            "podReplacementPolicy": Commented(
                "The next pod starts only after the previous one has ended: a run has one attempt at a time. With a "
                "podFailurePolicy this is the only valid value.",
                "Failed",
            ),
            "podFailurePolicy": Commented(
                "The first matching rule decides. A failure that matches none counts: exit code 1, out of memory "
                "(137), eviction for exceeding its own limits.",
                {"rules": _failure_rules(plan)},
            ),
            "activeDeadlineSeconds": Commented(
                "For the whole Job, including the wait for a node: nothing runs or waits forever.", plan.deadline_s
            ),
            "ttlSecondsAfterFinished": Commented(f"A day to read the logs; then the Job is deleted. {rest}", TTL_S),
            "template": {
                "metadata": {
                    "labels": Commented(
                        "Network policies, and the PodMonitor of training pods, select by these.", plan.labels
                    )
                },
                "spec": pod_spec(plan, settings),
            },
        },
    }


def _counts(plan: Plan) -> Manifest:
    if plan.distributed:
        return {
            "completionMode": "Indexed",
            "completions": Commented(
                "One process per pod; all train one run and share its batch. completions, parallelism and --world-size "
                "are the same number.",
                plan.processes,
            ),
            "parallelism": plan.processes,
            "successPolicy": Commented(
                "Rank 0 records the run and exits with 0 when it is finished; the other pods are not needed then.",
                {"rules": [{"succeededIndexes": "0"}]},
            ),
            "backoffLimit": Commented(
                "For all pods together. A pod that lost a peer after progress exits with 75, which does not count.",
                plan.retries,
            ),
        }
    if not plan.indexes:
        return {"backoffLimit": plan.retries}
    return {
        "completionMode": "Indexed",
        "completions": Commented(
            "One index per seed: index 3 trains seed 3, as a separate run. For more seeds raise completions and "
            "parallelism together; for fewer at a time lower parallelism: both with 'kubectl patch', also while the "
            "Job runs.",
            plan.indexes,
        ),
        "parallelism": plan.indexes,
        "backoffLimitPerIndex": Commented(
            "For each seed. No backoffLimit and no maxFailedIndexes: no seed ends because others failed.",
            plan.retries,
        ),
    }


def _failure_rules(plan: Plan) -> list[Commented]:
    def exit_code(code: int) -> Manifest:
        return {"containerName": plan.container, "operator": "In", "values": [code]}

    if plan.indexes:
        action = "FailIndex"
        never = (
            f"{_NEVER} FailIndex, not FailJob: if one seed diverges, the others continue; an error in all seeds ends "
            "each at its first attempt."
        )
    else:
        action = "FailJob"
        never = f"{_NEVER} First, so that a disruption at the same moment does not retry it."
    return [
        Commented(never, {"action": action, "onExitCodes": exit_code(UserError.exit_code)}),
        Commented(
            "Preempted, evicted, or its node drained or lost: not the run's fault.",
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ),
        Commented(
            _CONTINUE_COMMENT.get(plan.component, _IGNORED), {"action": "Ignore", "onExitCodes": exit_code(CONTINUE)}
        ),
    ]


def _ddp_objects(plan: Plan, settings: Settings) -> list[Manifest]:
    """The headless Service and the NetworkPolicy of distributed training, under the Job's name."""
    metadata = {"name": plan.name, "namespace": settings.namespace, "labels": plan.labels}
    # Kubernetes sets this label itself, so that no manifest can omit it.
    pods = {"batch.kubernetes.io/job-name": plan.name}
    same_job = [{"podSelector": {"matchLabels": pods}}]
    port = {"name": RENDEZVOUS, "port": RENDEZVOUS_PORT, "targetPort": RENDEZVOUS, "protocol": "TCP"}
    service: dict[str, Any] = {
        "clusterIP": Commented("Headless: DNS names of pods, no address of its own.", "None"),
        "publishNotReadyAddresses": Commented("The pods look each other up before any of them is ready.", True),
        "selector": pods,
        "ports": [port],
    }
    policy: dict[str, Any] = {
        "podSelector": {"matchLabels": pods},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": Commented(
            "gloo and NCCL use ports that are not known in advance: all, among the pods of this Job.",
            [{"from": same_job}],
        ),
        "egress": [{"to": same_job}],
    }
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": policy},
    ]


# -- drift: files that differ from what the registry renders -----------------------------------------------------------


def differences(folder: Path, settings: Settings) -> list[str]:
    """A line for each difference from the rendering, in fields, comments or files; empty if there is no drift.

    Raises ``UserError`` (exit 2) where there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name it by --out, or run 'cnn-jobs manifests render'")
    plans = {plan.file: plan for plan in choose([], data_volume=bool(settings.data_claim))}
    found = []
    for name, plan in plans.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{path}: missing, expected Job {plan.name}; {RENDER}")
            continue
        try:
            # Undecodable bytes become characters that no rendering has.
            text = path.read_bytes().decode(errors="replace")
        except OSError as error:
            raise from_os_error(error, path, "read") from error
        found += [f"{path}: {line}; {RENDER}" for line in compare(text, text_of(plan, settings))]
    surplus = sorted(each for each in folder.glob(f"*{SUFFIX}") if each.name not in plans)
    return found + [f"{path}: no Job of the registry has this file; delete it" for path in surplus]


def compare(text: str, expected: str) -> Iterator[str]:
    """The lines in which two texts differ, line endings included; a block that only one of them has counts once."""
    theirs, ours = (each.splitlines(keepends=True) for each in (text, expected))
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes():
        if tag == "replace" and i2 - i1 == j2 - j1:
            for number, pair in enumerate(zip(ours[j1:j2], theirs[i1:i2], strict=True), start=i1 + 1):
                yield _difference(number, [pair[0]], [pair[1]])
        elif tag != "equal":
            yield _difference(i1 + 1, ours[j1:j2], theirs[i1:i2])


def _difference(number: int, expected: Sequence[str], found: Sequence[str]) -> str:
    ours, theirs = ("".join(lines) for lines in (expected, found))
    if ours.strip() != theirs.strip():
        ours, theirs = ours.strip(), theirs.strip()
    return f"line {number}: expected {_shown(ours)}, found {_shown(theirs)}"


def _shown(text: str) -> str:
    shown = repr(text) if text else "nothing"
    return shown if len(shown) <= 100 else f"{shown[:100]}..."
