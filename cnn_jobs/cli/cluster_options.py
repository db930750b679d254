"""What every command that talks to a cluster takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cnn_jobs.cli.options import option
from cnn_jobs.cluster.settings import Settings

Command = Callable[..., Any]


def cluster_options(command: Command) -> Command:
    """Adds ``--namespace`` and ``--context``."""
    command = option("context", default="", show_default="the present one", help="Context of the kubeconfig.")(command)
    return option("namespace", default=Settings.namespace, help="Namespace of the Jobs.")(command)


def next_command(name: str, job: str, namespace: str, context: str) -> str:
    """What to type about a Job, fit to be pasted."""
    elsewhere = f" --namespace {namespace}" if namespace != Settings.namespace else ""
    return f"cnn-jobs {name} {job}{elsewhere}{f' --context {context}' if context else ''}"
