"""A plan as a ``batch/v1`` Job: plain dicts, in the order in which a person reads them."""

from __future__ import annotations

from cnn_jobs.cluster.companions import companions
from cnn_jobs.cluster.labels import labels_of
from cnn_jobs.cluster.plans import Plan
from cnn_jobs.cluster.pod import Manifest, pod_spec
from cnn_jobs.cluster.settings import Settings
from cnn_jobs.errors import CONTINUE, UserError

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
