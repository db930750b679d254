"""Jobs rendered by 'cnn-jobs manifests render', reduced to fit a node with two CPUs, and observed."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.kubectl import Cluster, Hopeless, Object
from tests.e2e.settings import Settings

# The CPU limit sets the threads. shapes needs less than a tenth of CIFAR-10's memory, beside torch, MLflow and plots.
SMALL = {"requests": {"cpu": "250m", "memory": "768Mi"}, "limits": {"cpu": "1", "memory": "2Gi"}}


def render(cluster: Cluster, settings: Settings, folder: Path, name: str, *more: str) -> list[Object]:
    """All objects of a rendered file, the Job first."""
    cluster.program(
        *("manifests", "render", "--out", str(folder), "--image", settings.image),
        *("--namespace", settings.namespace, "--no-gpu", *more, name),
    )
    return list(yaml.safe_load_all((folder / f"{name}-job.yaml").read_text()))


# Longer than every wait of the suite, whatever E2E_PATIENCE: the suite ends a Job that hangs.
DEADLINE_S = 4 * 3600


def small(job: Object, *, arguments: tuple[str, ...] = (), env: dict[str, str] | None = None, **spec: Any) -> Object:
    """``job`` with small requests, more arguments and variables, and other fields of its ``spec``."""
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    container["resources"] = SMALL
    container["args"] = [*container["args"], *arguments]
    container["env"] += [{"name": name, "value": value} for name, value in (env or {}).items()]
    job["spec"] |= {"activeDeadlineSeconds": DEADLINE_S, **spec}
    return job


def condition(job: Object) -> tuple[str, str]:
    """``Complete`` or ``Failed`` with the reason; "" while it is active."""
    for each in job.get("status", {}).get("conditions", []):
        if each["type"] in ("Complete", "Failed") and each["status"] == "True":
            return each["type"], each.get("reason", "")
    return "", ""


def over(cluster: Cluster, name: str, seconds: float) -> Object:
    """Waits until the Job is complete or failed; returns it."""

    def ended() -> Object | None:
        job = cluster.get("job", name)
        return job if condition(job)[0] else None

    found = cluster.wait(f"the end of Job {name}", ended, seconds)
    assert found
    return found


def complete(cluster: Cluster, name: str, seconds: float) -> Object:
    """Waits until the Job is complete; a failure has the end of its logs in the message."""
    job = over(cluster, name, seconds)
    if condition(job)[0] != "Complete":
        logs = "\n".join(cluster.log(pod["metadata"]["name"], "--tail=40") for pod in cluster.pods(name))
        raise AssertionError(f"Job {name} is {condition(job)}: {job['status']}\n{logs}")
    return job


def running_pod(cluster: Cluster, name: str, seconds: float, *, but: str = "") -> str:
    """Waits for a running pod of the Job other than ``but``; returns its name."""

    def there() -> str:
        if condition(cluster.get("job", name))[0] == "Failed":
            raise Hopeless(f"Job {name} failed: {cluster.get('job', name)['status']}")
        for pod in cluster.pods(name):
            if pod["status"]["phase"] in ("Running", "Succeeded") and pod["metadata"]["name"] != but:
                return str(pod["metadata"]["name"])
        return ""

    return cluster.wait(f"a running pod of Job {name}", there, seconds)


def next_pod(cluster: Cluster, name: str, first: str) -> str:
    """Waits for the pod after ``first``, which must be created after the first one's container has ended
    (``podReplacementPolicy: Failed``), and until it runs."""
    finished = ""

    def replaced() -> str:
        nonlocal finished
        for pod in cluster.pods(name):
            if pod["metadata"]["name"] != first:
                made = str(pod["metadata"]["creationTimestamp"])
                # One second of tolerance for the clocks of nodes; the back-off takes ten.
                if finished and (_when(finished) - _when(made)).total_seconds() > 1:
                    raise Hopeless(f"{first} ended at {finished}, the next pod was created at {made}")
                return str(pod["metadata"]["name"])
            finished = terminated(pod).get("finishedAt", finished)
        if condition(cluster.get("job", name))[0]:
            raise Hopeless(f"Job {name} is over without another pod: {cluster.get('job', name)['status']}")
        return ""

    cluster.wait(f"another pod of Job {name}", replaced, 300)
    return running_pod(cluster, name, 300, but=first)


def _when(text: str) -> datetime:
    return datetime.fromisoformat(text)


def first_line(cluster: Cluster, pod: str, seconds: float) -> Object:
    """The log record at the start of training, with the step from which it resumes and the total of steps."""

    def begun() -> Object | None:
        return next((each for each in lines(cluster.log(pod)) if each["message"].startswith("training, at most")), None)

    found = cluster.wait(f"the training in pod {pod}", begun, seconds)
    assert found
    return found


def lines(log: str) -> list[Object]:
    """The JSON objects of a log."""
    found = []
    for line in log.splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict) and "message" in content:
            found.append(content)
    return found


def terminated(pod: Object) -> Object:
    """The terminated state of its container; empty while it runs."""
    statuses = pod["status"].get("containerStatuses", [])
    ended: Object = statuses[0].get("state", {}).get("terminated", {}) if statuses else {}
    return ended
