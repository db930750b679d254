"""The labels of what is rendered."""

from __future__ import annotations

from cnn_jobs import __version__
from cnn_jobs.cluster.plans import Plan


def labels_of(plan: Plan) -> dict[str, str]:
    """Of the Job and of its pods."""
    return {
        "app.kubernetes.io/name": "cnn-jobs",
        "app.kubernetes.io/part-of": "cnn-jobs",
        "app.kubernetes.io/component": plan.component,
        "app.kubernetes.io/version": __version__,
        **({"cnn-jobs/task": plan.task} if plan.task else {}),
    }
