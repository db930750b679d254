"""The cluster's name servers, and a policy for those that the stack's policies do not cover."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from tests.e2e import network
from tests.e2e.kubectl import Cluster, Hopeless, Object, check_can_start, log
from tests.e2e.settings import Settings

# Labels in k8s/stack/network.yaml.
KNOWN = ("kube-dns", "node-local-dns")
POLICY = "dns-of-this-cluster"
NAME = "probe-names"
PROGRAM = """
lines = [line.split() for line in open("/etc/resolv.conf")]
print("servers", *[line[1] for line in lines if line[:1] == ["nameserver"]])
"""


def allow_dns(cluster: Cluster, settings: Settings) -> None:
    """Adds a policy if the name servers are not among the pods that the stack's policy ``dns`` allows."""
    servers = name_servers(cluster, settings)
    services = cluster.list("services", "--all-namespaces")
    slices = cluster.list("endpointslices", "--all-namespaces")
    pods = cluster.list("pods", "--namespace=kube-system")
    policy = policy_of(servers, services, slices, pods, settings.namespace)
    if policy is None:
        log(f"name servers are {', '.join(servers)}, which the policy 'dns' allows")
        return
    log(f"name servers are {', '.join(servers)}, which the policy 'dns' does not allow: another policy is added")
    cluster.apply(policy)


def name_servers(cluster: Cluster, settings: Settings) -> list[str]:
    """The name servers in a pod's resolver configuration."""
    pod = network.pod(settings, NAME, {}, ["python", "-c", PROGRAM], [])
    # A new namespace has no ServiceAccount for a moment, which pods require.
    cluster.wait("a first pod", lambda: cluster.find("pod", NAME) or cluster.create(pod), 60)

    def output() -> str:
        found = cluster.get("pod", NAME)
        check_can_start(found)
        if found["status"]["phase"] == "Failed":
            raise Hopeless(f"{settings.image} cannot run python: {cluster.log(NAME)}")
        return cluster.log(NAME) if found["status"]["phase"] == "Succeeded" else ""

    text = cluster.wait(f"its output, with {settings.image}", output, 600)
    cluster.run("delete", "pod", NAME, "--wait=false")
    return text.partition("servers")[2].split()


def policy_of(
    servers: Iterable[str], services: list[Object], slices: list[Object], pods: list[Object], namespace: str
) -> Object | None:
    """A policy that allows the ``servers``; ``None`` if they are pods that the stack's policy selects by labels.

    Behind a Service's address, policies see the addresses of its pods. Most network plugins do not treat one with the
    node's address as a pod, whatever its labels.
    """
    known = {
        pod["status"].get("podIP")
        for pod in pods
        if pod["metadata"].get("labels", {}).get("k8s-app") in KNOWN and not pod["spec"].get("hostNetwork")
    }
    places: set[tuple[str, int]] = set()
    for server in servers:
        places |= _behind(server, services, slices) or {(server, 53)}
    if {address for address, _ in places} <= known and {port for _, port in places} <= {53}:
        return None
    addresses = sorted({address for address, _ in places} | set(servers))
    ports = sorted({port for _, port in places} | {53})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": POLICY, "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "cnn-jobs"}},
        "spec": {
            "podSelector": {},
            "policyTypes": ["Egress"],
            "egress": [
                {
                    "to": [{"ipBlock": {"cidr": _single_address(address)}} for address in addresses],
                    "ports": [{"protocol": protocol, "port": port} for port in ports for protocol in ("UDP", "TCP")],
                }
            ],
        },
    }


def _behind(server: str, services: list[Object], slices: list[Object]) -> set[tuple[str, int]]:
    """Addresses and ports of the pods behind a Service's address."""
    found: set[tuple[str, int]] = set()
    for service in services:
        metadata = service["metadata"]
        if server not in (service["spec"].get("clusterIPs") or [service["spec"].get("clusterIP")]):
            continue
        ports = {each.get("name"): each["port"] for each in service["spec"].get("ports", [])}
        for each in slices:
            labels = each["metadata"].get("labels", {})
            if (each["metadata"]["namespace"], labels.get("kubernetes.io/service-name")) == (
                metadata["namespace"],
                metadata["name"],
            ):
                found |= _endpoints(each, {name for name, port in ports.items() if port == 53})
    return found


def _endpoints(slice_: Any, names: set[str | None]) -> set[tuple[str, int]]:
    addresses = [address for each in slice_.get("endpoints") or [] for address in each["addresses"]]
    ports = [each["port"] for each in slice_.get("ports") or [] if (each.get("name") or None) in names]
    return {(address, port) for address in addresses for port in ports}


def _single_address(address: str) -> str:
    return f"{address}/{32 if ipaddress.ip_address(address).version == 4 else 128}"
