"""What pods that train one run together need beside their Job: names for each other, and a way through the policies."""

from __future__ import annotations

from cnn_jobs.cluster.labels import labels_of
from cnn_jobs.cluster.plans import Plan
from cnn_jobs.cluster.pod import RENDEZVOUS, RENDEZVOUS_PORT, Manifest
from cnn_jobs.cluster.settings import Settings


def companions(plan: Plan, settings: Settings) -> list[Manifest]:
    """The headless Service and the NetworkPolicy, under the Job's name."""
    metadata = {"name": plan.name, "namespace": settings.namespace, "labels": labels_of(plan)}
    # Kubernetes' own label: no manifest can forget it.
    pods = {"batch.kubernetes.io/job-name": plan.name}
    port = {"name": RENDEZVOUS, "port": RENDEZVOUS_PORT, "targetPort": RENDEZVOUS, "protocol": "TCP"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": pods, "ports": [port]},
    }
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": {
            "podSelector": {"matchLabels": pods},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": pods}}]}],
            "egress": [{"to": [{"podSelector": {"matchLabels": pods}}]}],
        },
    }
    return [service, policy]
