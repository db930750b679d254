"""Connections that the policies must allow, and those that they must deny."""

from __future__ import annotations

from tests.helpers.kustomize import STACK
from tests.stack.network import Peer

STORE, MONITORING = "k8s/overlays/in-cluster-store", "k8s/overlays/monitoring"


def part(component: str, **more: str) -> Peer:
    """A pod of this project."""
    labels = {"app.kubernetes.io/part-of": "cnn-jobs", "app.kubernetes.io/component": component, **more}
    return Peer(component, labels, "cnn-jobs")


def trainer(job: str) -> Peer:
    """A training pod with the label that Kubernetes gives the pods of a Job."""
    return part("training", **{"batch.kubernetes.io/job-name": job})


TRAINING, REPORT, INTERPRET, DOCTOR = part("training"), part("report"), part("interpret"), part("doctor")
DATA, REAP, GC, MLFLOW, POSTGRES = part("data"), part("reap"), part("mlflow-gc"), part("mlflow"), part("postgres")
S3_POD, GATEWAY = part("store"), part("pushgateway")
UNLABELLED = Peer("pod without labels", {}, "cnn-jobs")
IMPOSTOR = Peer("training pod elsewhere", TRAINING.labels, "other")
DNS = Peer("dns", {"k8s-app": "kube-dns"}, "kube-system")
LOCAL_DNS = Peer("node-local dns", ip="169.254.20.10")
LOCAL_DNS_POD = Peer("pod of node-local dns", {"k8s-app": "node-local-dns"}, "kube-system")
OTHER_SYSTEM = Peer("another pod of kube-system", {"k8s-app": "metrics"}, "kube-system")
PROMETHEUS = Peer("prometheus", {"app.kubernetes.io/name": "prometheus"}, "monitoring")
INTERNET, INTERNET6 = Peer("internet", ip="52.216.1.1"), Peer("internet", ip="2600:1f16::1")
METADATA, METADATA6 = Peer("cloud metadata", ip="169.254.169.254"), Peer("cloud metadata", ip="fd00:ec2::254")
API = Peer("kubernetes api", ip="10.96.0.1")

# folder, source, target, port, protocol, allowed
TABLE: list[tuple[str, Peer, Peer, int, str, bool]] = [
    # All components that use MLflow reach it, on its one port.
    *((STACK, pod, MLFLOW, 5000, "TCP", True) for pod in (TRAINING, REPORT, INTERPRET, DOCTOR, DATA, REAP, GC)),
    (STACK, TRAINING, MLFLOW, 5432, "TCP", False),
    *((STACK, pod, MLFLOW, 5000, "TCP", False) for pod in (UNLABELLED, IMPOSTOR, POSTGRES, PROMETHEUS, INTERNET)),
    # All pods resolve names, and reach DNS on no other port.
    *((STACK, pod, DNS, 53, protocol, True) for pod in (TRAINING, MLFLOW, DATA, REAP) for protocol in ("UDP", "TCP")),
    *((STACK, TRAINING, to, 53, "UDP", True) for to in (LOCAL_DNS, LOCAL_DNS_POD)),
    (STACK, TRAINING, DNS, 8080, "TCP", False),
    (STACK, TRAINING, OTHER_SYSTEM, 53, "UDP", False),
    # Training pods reach nothing else: not S3, the database, each other, or the node's identity.
    *((STACK, TRAINING, to, 443, "TCP", False) for to in (INTERNET, INTERNET6, API)),
    *((STACK, TRAINING, to, 80, "TCP", False) for to in (METADATA, METADATA6)),
    (STACK, TRAINING, POSTGRES, 5432, "TCP", False),
    (STACK, trainer("a"), trainer("a"), 29500, "TCP", False),
    *((STACK, pod, INTERNET, 443, "TCP", False) for pod in (REPORT, INTERPRET, DOCTOR, REAP, GC, POSTGRES, UNLABELLED)),
    # prepare-data connects to anything outside; nothing connects to it.
    *((STACK, DATA, INTERNET, port, "TCP", True) for port in (80, 443, 21)),
    (STACK, DATA, INTERNET6, 443, "TCP", True),
    (STACK, DATA, POSTGRES, 5432, "TCP", False),
    (STACK, INTERNET, DATA, 443, "TCP", False),
    # Only MLflow and its gc reach the database.
    (STACK, MLFLOW, POSTGRES, 5432, "TCP", True),
    (STACK, GC, POSTGRES, 5432, "TCP", True),
    (STACK, MLFLOW, POSTGRES, 22, "TCP", False),
    *((STACK, pod, POSTGRES, 5432, "TCP", False) for pod in (REPORT, REAP, UNLABELLED, IMPOSTOR, INTERNET)),
    # MLflow reaches an external bucket by https, but not the cloud's metadata service.
    (STACK, MLFLOW, INTERNET, 443, "TCP", True),
    (STACK, MLFLOW, INTERNET6, 443, "TCP", True),
    (STACK, MLFLOW, INTERNET, 80, "TCP", False),
    *((STACK, MLFLOW, to, port, "TCP", False) for to in (METADATA, METADATA6) for port in (80, 443)),
    # With a store in the cluster: only MLflow reaches it, and MLflow nothing outside.
    (STORE, MLFLOW, S3_POD, 8333, "TCP", True),
    (STORE, MLFLOW, INTERNET, 443, "TCP", False),
    # Master, volume server and filer require no key.
    *((STORE, MLFLOW, S3_POD, port, "TCP", False) for port in (8080, 8888, 9333, 18333)),
    *((STORE, pod, S3_POD, 8333, "TCP", False) for pod in (TRAINING, DATA, GC, UNLABELLED, IMPOSTOR, INTERNET)),
    (STORE, S3_POD, INTERNET, 443, "TCP", False),
    # Prometheus scrapes metrics from its namespace, with the overlay.
    (STACK, PROMETHEUS, TRAINING, 9090, "TCP", False),
    (MONITORING, PROMETHEUS, TRAINING, 9090, "TCP", True),
    (MONITORING, PROMETHEUS, MLFLOW, 5000, "TCP", True),
    (MONITORING, PROMETHEUS, GATEWAY, 9091, "TCP", True),
    (MONITORING, PROMETHEUS, TRAINING, 29500, "TCP", False),
    (MONITORING, PROMETHEUS, POSTGRES, 5432, "TCP", False),
    (MONITORING, IMPOSTOR, TRAINING, 9090, "TCP", False),
    (MONITORING, TRAINING, GATEWAY, 9091, "TCP", True),
    (MONITORING, REPORT, GATEWAY, 9091, "TCP", False),
    (MONITORING, TRAINING, INTERNET, 443, "TCP", False),
]

ALL_PEERS = [TRAINING, REPORT, INTERPRET, DOCTOR, DATA, REAP, GC, MLFLOW, POSTGRES, S3_POD, GATEWAY]
ALL_PEERS += [UNLABELLED, IMPOSTOR, DNS, PROMETHEUS, INTERNET, METADATA]
# folder, direction, owner, port, allowed peers. Each end by itself: a connection that only the other end denies would
# open with the next change there.
ENDS: list[tuple[str, str, Peer, int, list[Peer]]] = [
    (STACK, "Ingress", MLFLOW, 5000, [TRAINING, REPORT, INTERPRET, DOCTOR, DATA, REAP, GC]),
    (STACK, "Ingress", POSTGRES, 5432, [GC, MLFLOW]),
    (STORE, "Ingress", S3_POD, 8333, [MLFLOW]),
    (MONITORING, "Ingress", GATEWAY, 9091, [TRAINING, PROMETHEUS]),
    (MONITORING, "Ingress", TRAINING, 9090, [PROMETHEUS]),
    *((STACK, "Ingress", pod, 9090, []) for pod in (TRAINING, REPORT, DATA, UNLABELLED)),
    *((STACK, "Egress", pod, 5000, [MLFLOW]) for pod in (TRAINING, REPORT, INTERPRET, DOCTOR, REAP, GC)),
    *((STACK, "Egress", pod, 5000, []) for pod in (POSTGRES, UNLABELLED)),
    *((STACK, "Egress", pod, 5432, [POSTGRES]) for pod in (MLFLOW, GC)),
    (STORE, "Egress", MLFLOW, 8333, [S3_POD]),
    (MONITORING, "Egress", TRAINING, 9091, [GATEWAY]),
    *((STORE, "Egress", pod, 443, []) for pod in (TRAINING, MLFLOW, POSTGRES, S3_POD, UNLABELLED)),
    (STACK, "Egress", DATA, 443, ALL_PEERS),
]
