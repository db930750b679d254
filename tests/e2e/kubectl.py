"""The cluster of KUBECONFIG, through kubectl, with logged and limited waits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Object = dict[str, Any]
Result = TypeVar("Result")
BIN = Path(sys.executable).parent
# A call without an answer after this time is repeated, or fails.
CALL_S = 60.0


def log(text: str) -> None:
    """Prints a line, which 'make e2e' shows at once."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def program(name: str) -> str:
    """Path of a program, preferably of this virtual environment."""
    own = BIN / name
    found = str(own) if own.exists() else shutil.which(name)
    assert found, f"{name} is missing: pip install -e '.[test]'"
    return found


class Cluster:
    """One namespace of the cluster."""

    def __init__(self, namespace: str, patience: float = 1.0) -> None:
        self.namespace, self.patience = namespace, patience

    def run(
        self, *arguments: str, given: str = "", check: bool = True, timeout_s: float = CALL_S
    ) -> subprocess.CompletedProcess[str]:
        """Runs ``kubectl`` in the namespace."""
        words = [program("kubectl"), "--namespace", self.namespace, *arguments]
        ran = subprocess.run(
            words, input=given, capture_output=True, text=True, check=False, timeout=timeout_s * self.patience
        )
        assert not check or ran.returncode == 0, f"kubectl {' '.join(arguments)}: {ran.stderr.strip()}"
        return ran

    def get(self, *arguments: str) -> Object:
        """An object or a list."""
        found: Object = json.loads(self.run("get", *arguments, "-o", "json").stdout)
        return found

    def list(self, *arguments: str) -> list[Object]:
        """The items of a list."""
        items: list[Object] = self.get(*arguments)["items"]
        return items

    def find(self, kind: str, name: str) -> Object | None:
        """An object; ``None`` if it does not exist."""
        text = self.run("get", kind, name, "--ignore-not-found", "-o", "json").stdout
        return json.loads(text) if text.strip() else None

    def version(self) -> str:
        """Version of the API server."""
        return str(json.loads(self.run("get", "--raw=/version").stdout)["gitVersion"])

    def apply(self, *objects: Object) -> None:
        """Creates or updates objects."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.run("apply", "-f", "-", given=text)

    def create(self, thing: Object) -> Object:
        """Creates an object; returns it as stored."""
        made: Object = json.loads(self.run("create", "-o", "json", "-f", "-", given=json.dumps(thing)).stdout)
        return made

    def pods(self, job: str) -> list[Object]:
        """The pods of a Job, oldest first."""
        found = self.list("pods", "-l", f"batch.kubernetes.io/job-name={job}")
        return sorted(found, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def log(self, pod: str, *more: str) -> str:
        """A pod's log so far; "" if it has none (yet)."""
        return self.run("logs", pod, *more, check=False).stdout

    def wait(self, what: str, question: Callable[[], Result], seconds: float) -> Result:
        """Polls ``question`` until its answer is true; failing calls are repeated. The limit is ``seconds`` times the
        patience."""
        log(f"waiting for {what} (at most {seconds * self.patience:.0f} s)")
        began, logged, error_text = time.monotonic(), time.monotonic(), ""
        while True:
            try:
                answer, error_text = question(), ""
                if answer:
                    log(f"{what}: after {time.monotonic() - began:.0f} s")
                    return answer
            except Hopeless:
                raise
            except (AssertionError, OSError, KeyError, ValueError, subprocess.TimeoutExpired) as error:
                error_text = f"; {type(error).__name__}: {str(error)[:300]}"
            now = time.monotonic()
            if now - began > seconds * self.patience:
                raise AssertionError(f"{what}: not within {seconds * self.patience:.0f} s{error_text}")
            if now - logged > 15:
                logged = now
                log(f"still waiting for {what}: {self.summary()}{error_text}")
            time.sleep(1)

    def summary(self) -> str:
        """Name and state of each pod that has not completed."""
        text = self.run("get", "pods", "--no-headers", check=False).stdout
        rows = [line.split() for line in text.splitlines()]
        return ", ".join(f"{row[0]} {row[2]}" for row in rows if len(row) > 2 and row[2] != "Completed") or "no pods"

    def dump(self) -> str:
        """Jobs, pods, events and logs, to find the reason of a failure."""
        wanted = [
            ("get", "jobs,deployments,statefulsets,pods,services,pvc,networkpolicies", "-o", "wide"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            ("describe", "jobs"),
            ("describe", "pods"),
        ]
        parts = [f"$ kubectl {' '.join(words)}\n{self._output(*words)}" for words in wanted]
        for name in self._output("get", "pods", "-o", "name").split():
            parts.append(f"$ kubectl logs {name}\n{self._output('logs', name, '--tail=80', '--all-containers')}")
        return "\n".join(parts)

    def _output(self, *arguments: str) -> str:
        try:
            ran = self.run(*arguments, check=False)
        except subprocess.TimeoutExpired:
            return "no answer\n"
        return (ran.stdout + ran.stderr)[-60_000:]

    def program(self, *arguments: str, check: bool = True, timeout_s: float = 300.0, **env: str) -> str:
        """Runs ``cnn-jobs`` on this machine, for this cluster; returns its output."""
        words = [program("cnn-jobs"), *arguments]
        ran = subprocess.run(
            words,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s * self.patience,
            env={**os.environ, **env},
        )
        text = ran.stdout + ran.stderr
        assert not check or ran.returncode == 0, f"cnn-jobs {' '.join(arguments)}: exit code {ran.returncode}\n{text}"
        return text


class Hopeless(AssertionError):  # noqa: N818
    """The condition can no longer become true."""


def check_can_start(pod: Object) -> None:
    """Raises ``Hopeless`` for a missing image that will not be pulled."""
    for each in pod.get("status", {}).get("containerStatuses", []):
        waiting = each.get("state", {}).get("waiting", {})
        if waiting.get("reason") in ("ErrImageNeverPull", "InvalidImageName"):
            raise Hopeless(f"pod {pod['metadata']['name']}: {waiting}")
