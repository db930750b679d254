"""A small evaluator of NetworkPolicies: https://kubernetes.io/docs/concepts/services-networking/network-policies/."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod with labels in a namespace, or an address outside of the cluster."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = ""
    ip: str = "10.244.1.7"

    @property
    def namespace_labels(self) -> dict[str, str]:
        return {"kubernetes.io/metadata.name": self.namespace}


def allowed(policies: Iterable[dict[str, Any]], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether the policies of both ends allow a connection."""
    policies = list(policies)
    ends = (("Egress", source, target), ("Ingress", target, source))
    return all(passes(policies, direction, owner, other, port, protocol) for direction, owner, other in ends)


def passes(
    policies: Iterable[dict[str, Any]], direction: str, owner: Peer, other: Peer, port: int, protocol: str = "TCP"
) -> bool:
    """Whether the policies of ``owner`` allow a connection: Egress to ``other``, or Ingress from it."""
    mine = [policy for policy in policies if _selects(policy, owner) and direction in _directions(policy["spec"])]
    if not owner.namespace or not mine:
        return True
    side = "to" if direction == "Egress" else "from"
    rules = [(policy, rule) for policy in mine for rule in policy["spec"].get(direction.lower(), [])]
    return any(
        _port_fits(rule.get("ports", []), port, protocol)
        and (not rule.get(side) or any(_is(peer, other, policy["metadata"]["namespace"]) for peer in rule[side]))
        for policy, rule in rules
    )


def _selects(policy: dict[str, Any], pod: Peer) -> bool:
    return pod.namespace == policy["metadata"]["namespace"] and matches(policy["spec"]["podSelector"], pod.labels)


def _directions(spec: dict[str, Any]) -> list[str]:
    return spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])]


def _port_fits(ports: list[dict[str, Any]], port: int, protocol: str) -> bool:
    return not ports or any(
        each.get("protocol", "TCP") == protocol
        and ("port" not in each or int(each["port"]) <= port <= int(each.get("endPort", each["port"])))
        for each in ports
    )


def _is(peer: dict[str, Any], other: Peer, home: str) -> bool:
    if block := peer.get("ipBlock"):
        address = ipaddress.ip_address(other.ip)
        inside = address in ipaddress.ip_network(block["cidr"])
        return inside and not any(address in ipaddress.ip_network(each) for each in block.get("except", []))
    if not other.namespace:
        return False
    if "namespaceSelector" in peer:
        right_place = matches(peer["namespaceSelector"], other.namespace_labels)
    else:
        right_place = other.namespace == home
    return right_place and matches(peer.get("podSelector", {}), other.labels)


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector matches these labels; an empty one matches all."""
    for rule in selector.get("matchExpressions", []):
        value, values = labels.get(rule["key"]), rule.get("values", [])
        fits = {
            "In": value is not None and value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[rule["operator"]]
        if not fits:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
