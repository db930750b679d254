"""Who reaches whom, by the policies of the stack and its overlays, evaluated for every pair that matters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from tests.stack.manifests import K8S, STACK, Pod, block_of_page, build, pods
from tests.stack.network import Peer, allowed, matches

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
S3_POD, BUCKET, GATEWAY = part("store"), part("store-bucket"), part("pushgateway")
STRANGER = Peer("pod without labels", {}, "cnn-jobs")
IMPOSTOR = Peer("training pod elsewhere", TRAINING.labels, "other")
DNS = Peer("dns", {"k8s-app": "kube-dns"}, "kube-system")
LOCAL_DNS = Peer("node-local dns", ip="169.254.20.10")
OTHER_SYSTEM = Peer("another pod of kube-system", {"k8s-app": "metrics"}, "kube-system")
PROMETHEUS = Peer("prometheus", {"app.kubernetes.io/name": "prometheus"}, "monitoring")
INTERNET, INTERNET6 = Peer("internet", ip="52.216.1.1"), Peer("internet", ip="2600:1f16::1")
METADATA, METADATA6 = Peer("cloud metadata", ip="169.254.169.254"), Peer("cloud metadata", ip="fd00:ec2::254")
API = Peer("kubernetes api", ip="10.96.0.1")

# folder, from, to, port, protocol, whether it goes through
TABLE: list[tuple[str, Peer, Peer, int, str, bool]] = [
    # What uses MLflow reaches it, on its one port.
    *((STACK, pod, MLFLOW, 5000, "TCP", True) for pod in (TRAINING, REPORT, INTERPRET, DOCTOR, DATA, REAP, GC)),
    (STACK, TRAINING, MLFLOW, 5432, "TCP", False),
    *((STACK, pod, MLFLOW, 5000, "TCP", False) for pod in (STRANGER, IMPOSTOR, POSTGRES, PROMETHEUS, INTERNET)),
    # Names are resolved by all, and nothing else is asked there.
    *((STACK, pod, DNS, 53, protocol, True) for pod in (TRAINING, MLFLOW, DATA, REAP) for protocol in ("UDP", "TCP")),
    (STACK, TRAINING, LOCAL_DNS, 53, "UDP", True),
    (STACK, TRAINING, DNS, 8080, "TCP", False),
    (STACK, TRAINING, OTHER_SYSTEM, 53, "UDP", False),
    # Training pods reach nothing else: not S3, not the database, not each other, not the node's identity.
    *((STACK, TRAINING, to, 443, "TCP", False) for to in (INTERNET, INTERNET6, API)),
    *((STACK, TRAINING, to, 80, "TCP", False) for to in (METADATA, METADATA6)),
    (STACK, TRAINING, POSTGRES, 5432, "TCP", False),
    (STACK, trainer("a"), trainer("a"), 29500, "TCP", False),
    *((STACK, pod, INTERNET, 443, "TCP", False) for pod in (REPORT, INTERPRET, DOCTOR, REAP, GC, POSTGRES, STRANGER)),
    # prepare-data fetches from anywhere; nobody reaches it.
    *((STACK, DATA, INTERNET, port, "TCP", True) for port in (80, 443, 21)),
    (STACK, DATA, INTERNET6, 443, "TCP", True),
    (STACK, DATA, POSTGRES, 5432, "TCP", False),
    (STACK, INTERNET, DATA, 443, "TCP", False),
    # The database is for MLflow and its gc.
    (STACK, MLFLOW, POSTGRES, 5432, "TCP", True),
    (STACK, GC, POSTGRES, 5432, "TCP", True),
    (STACK, MLFLOW, POSTGRES, 22, "TCP", False),
    *((STACK, pod, POSTGRES, 5432, "TCP", False) for pod in (REPORT, REAP, STRANGER, IMPOSTOR, INTERNET)),
    # MLflow reaches a bucket outside by https, and not the cloud's metadata.
    (STACK, MLFLOW, INTERNET, 443, "TCP", True),
    (STACK, MLFLOW, INTERNET6, 443, "TCP", True),
    (STACK, MLFLOW, INTERNET, 80, "TCP", False),
    *((STACK, MLFLOW, to, port, "TCP", False) for to in (METADATA, METADATA6) for port in (80, 443)),
    # With a store in the cluster: that, from MLflow and the Job of its bucket, and nothing outside.
    (STORE, MLFLOW, S3_POD, 8333, "TCP", True),
    (STORE, BUCKET, S3_POD, 8333, "TCP", True),
    (STORE, MLFLOW, INTERNET, 443, "TCP", False),
    # Master, volume server and filer ask nobody for a key.
    *((STORE, MLFLOW, S3_POD, port, "TCP", False) for port in (8080, 8888, 9333, 18333)),
    *((STORE, pod, S3_POD, 8333, "TCP", False) for pod in (TRAINING, DATA, GC, STRANGER, IMPOSTOR, INTERNET)),
    (STORE, S3_POD, INTERNET, 443, "TCP", False),
    (STORE, BUCKET, MLFLOW, 5000, "TCP", False),
    # Prometheus reads metrics, from its namespace, where the overlay lets it.
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


def policies(folder: str) -> list[dict[str, Any]]:
    return [thing for thing in build(folder) if thing["kind"] == "NetworkPolicy"]


@pytest.mark.parametrize(
    ("folder", "source", "target", "port", "protocol", "passes"),
    [
        pytest.param(*row, id=f"{row[0].rpartition('/')[2]}:{row[1].name}->{row[2].name}:{row[3]}/{row[4]}")
        for row in TABLE
    ],
)
def test_the_table(folder: str, source: Peer, target: Peer, port: int, protocol: str, passes: bool) -> None:
    assert allowed(policies(folder), source, target, port, protocol) is passes


JOBS = [pod for path in sorted(K8S.glob("*-job.yaml")) for pod in pods(yaml.safe_load_all(path.read_text()))]


@pytest.mark.parametrize("pod", JOBS, ids=lambda pod: pod.owner)
def test_every_job_as_it_is_rendered_reaches_what_it_needs(pod: Pod) -> None:
    peer = Peer(pod.owner, pod.labels, "cnn-jobs")
    assert allowed(policies(STACK), peer, MLFLOW, 5000)
    assert allowed(policies(STACK), peer, DNS, 53, "UDP")
    downloads = pod.labels["app.kubernetes.io/component"] == "data"
    assert allowed(policies(STACK), peer, INTERNET, 443) is downloads
    watched = pod.labels["app.kubernetes.io/component"] == "training"
    assert allowed(policies(MONITORING), PROMETHEUS, peer, 9090) is watched


def test_there_are_jobs_of_every_kind() -> None:
    kinds = {pod.labels["app.kubernetes.io/component"] for pod in JOBS}
    assert kinds == {"training", "report", "interpret", "doctor", "data"}


def ddp_policy(job: str) -> dict[str, Any]:
    """The manual's, for another Job."""
    found: dict[str, Any] = yaml.safe_load(block_of_page("ddp").replace("task4a-ddp", job))
    return found


@pytest.mark.parametrize("port", [29500, 1024, 43210, 65535])
def test_pods_of_a_distributed_training_reach_their_own_job_on_every_port_and_no_other(port: int) -> None:
    together = [*policies(STACK), ddp_policy("a"), ddp_policy("b")]
    assert allowed(together, trainer("a"), trainer("a"), port)
    assert not allowed(together, trainer("a"), trainer("b"), port)
    assert not allowed(together, trainer("a"), TRAINING, port)
    assert not allowed(together, TRAINING, trainer("a"), port)
    assert not allowed(together, MLFLOW, trainer("a"), port)
    assert not allowed(together, trainer("a"), INTERNET, port)
    # It adds to what every training pod may.
    assert allowed(together, trainer("a"), MLFLOW, 5000)


@pytest.mark.parametrize("folder", [STACK, STORE, MONITORING, "k8s/overlays/kind", "k8s/overlays/kueue"])
def test_every_policy_but_those_for_all_is_needed(folder: str) -> None:
    """Without it, a pair of the table would no longer connect: no leftovers, and the table sees each."""
    whole = policies(folder)
    rows = [row[1:] for row in TABLE if row[5] and (row[0] in (STACK, folder) or folder.endswith("kind"))]
    rows = [row for row in rows if allowed(whole, *row[:4])]
    for policy in whole:
        rest = [each for each in whole if each is not policy]
        if policy["metadata"]["name"] == "default-deny":
            assert allowed(rest, INTERNET, STRANGER, 22)  # outwards the policy of DNS would still close the door
        else:
            assert not all(allowed(rest, *row[:4]) for row in rows), policy["metadata"]["name"]


@pytest.mark.parametrize(
    ("selector", "labels", "fits"),
    [
        ({}, {}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "1", "b": "2"}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "2"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"a": ""}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {"a": ""}, False),
    ],
)
def test_selectors_as_kubernetes_means_them(selector: dict[str, Any], labels: dict[str, str], fits: bool) -> None:
    assert matches(selector, labels) is fits


def test_the_evaluator_knows_the_rules_that_bite() -> None:
    """Checked on policies of known meaning: a rule without 'to' is for all, one side alone is not enough."""
    closed: dict[str, Any] = {
        "metadata": {"namespace": "n"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
    }
    a, b = Peer("a", {"x": "a"}, "n"), Peer("b", {"x": "b"}, "n")
    assert allowed([], a, b, 1)
    assert not allowed([closed], a, b, 1)
    out = copy.deepcopy(closed)
    out["spec"] |= {"podSelector": {"matchLabels": {"x": "a"}}, "policyTypes": ["Egress"], "egress": [{}]}
    assert allowed([closed, out], a, INTERNET, 1)
    assert not allowed([closed, out], a, b, 1)
    into = copy.deepcopy(closed)
    into["spec"] |= {"policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 1}]}]}
    assert allowed([closed, out, into], a, b, 1)
    assert not allowed([closed, out, into], a, b, 2)
    assert not allowed([closed, out, into], Peer("c", {"x": "a"}, "elsewhere"), b, 1)
    # Without policyTypes, a policy is of ingress, and of egress only if it has rules for that.
    assert allowed([{"metadata": {"namespace": "n"}, "spec": {"podSelector": {}}}], a, INTERNET, 1)
