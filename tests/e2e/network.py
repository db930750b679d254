"""Probe pods with the labels of one component, which try to connect to addresses."""

from __future__ import annotations

import json
from typing import Any

from tests.e2e.kubectl import Cluster, Object, log
from tests.e2e.settings import Settings

# Arguments: addresses to reach and addresses not to reach, as JSON. In some clusters a pod that starts while a policy
# exists has no network for some seconds, in others no restrictions: so allowed addresses are tried until they are
# reached, denied ones after that, and their last try counts.
PROBE = """
import json, socket, sys, time
def once(place):
    try:
        socket.create_connection((place[0], int(place[1])), timeout=4).close()
    except OSError as error:
        return type(error).__name__
    return "reached"
wanted, unwanted = json.loads(sys.argv[1]), json.loads(sys.argv[2])
found = {}
end = time.monotonic() + float(sys.argv[3])
for name, place in wanted.items():
    while (answer := once(place)) != "reached" and time.monotonic() < end:
        time.sleep(1)
    found[name] = answer
time.sleep(10)
for name, place in unwanted.items():
    # Two tries in a row: a busy node may lose one.
    for _ in range(4):
        found[name], again = once(place), once(place)
        if "reached" not in (found[name], again):
            break
        found[name] = "reached"
        time.sleep(5)
print("found " + json.dumps(found), flush=True)
"""
Places = dict[str, tuple[str, int]]


def probe(settings: Settings, name: str, component: str, wanted: Places, unwanted: Places) -> Object:
    """A probe pod; ``component`` "": one that only the policy selects which denies everything."""
    labels = {"app.kubernetes.io/part-of": "cnn-jobs", "app.kubernetes.io/component": component} if component else {}
    seconds = 60 * settings.patience if component else 1
    arguments = [json.dumps(wanted), json.dumps(unwanted), str(seconds)]
    return pod(settings, name, labels, ["python", "-c", PROBE], arguments)


def pod(settings: Settings, name: str, labels: dict[str, str], command: list[str], arguments: list[str]) -> Object:
    """A small pod of the Jobs' image, which the namespace's rules admit."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": settings.namespace, "labels": {**labels, "cnn-jobs/probe": name}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "activeDeadlineSeconds": 4 * 3600,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "probe",
                    "image": settings.image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": command,
                    "args": arguments,
                    "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }


def answers(cluster: Cluster, *pods: Object) -> dict[str, dict[str, str]]:
    """Creates the pods; returns their results by name."""
    for pod in pods:
        cluster.create(pod)
    names = [pod["metadata"]["name"] for pod in pods]

    def done() -> dict[str, Any]:
        found = {name: cluster.log(name).partition("found ")[2] for name in names}
        return {name: json.loads(text) for name, text in found.items()} if all(found.values()) else {}

    return cluster.wait(f"the probes {', '.join(names)}", done, 240)


def ignore_own_node(cluster: Cluster, found: dict[str, dict[str, str]]) -> None:
    """Replaces results of pods that reach the API server on their own node.

    Policies need not apply between a pod and its node:
    https://kubernetes.io/docs/concepts/services-networking/network-policies/#the-two-sorts-of-pod-isolation
    """
    if set(found["probe-nobody"].values()) == {"reached"}:
        return  # no policy is enforced
    slices = cluster.list("endpointslices", "--namespace=default", "-l", "kubernetes.io/service-name=kubernetes")
    servers = {address for each in slices for point in each["endpoints"] for address in point["addresses"]}
    for name in found.keys() - {"probe-data"}:
        if found[name].get("api") == "reached" and cluster.get("pod", name)["status"].get("hostIP") in servers:
            log(f"{name} reaches the API server, which is on its own node: policies need not apply there")
            found[name]["api"] = "on its own node"
