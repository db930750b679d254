"""Connections allowed and denied by the policies of the stack and its overlays."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from tests.helpers.kustomize import K8S, STACK, Pod, build, pods
from tests.stack.network import Peer, allowed, matches, passes
from tests.stack.network_table import (
    ALL_PEERS,
    DNS,
    ENDS,
    INTERNET,
    MLFLOW,
    MONITORING,
    PROMETHEUS,
    STORE,
    TABLE,
    TRAINING,
    UNLABELLED,
    trainer,
)


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


@pytest.mark.parametrize(
    ("folder", "direction", "owner", "port", "others"),
    [pytest.param(*row, id=f"{row[0].rpartition('/')[2]}:{row[1]}:{row[2].name}:{row[3]}") for row in ENDS],
)
def test_each_end_allows_exactly_the_listed_peers(
    folder: str, direction: str, owner: Peer, port: int, others: list[Peer]
) -> None:
    found = [peer.name for peer in ALL_PEERS if passes(policies(folder), direction, owner, peer, port)]
    assert found == [peer.name for peer in ALL_PEERS if peer in others]


def test_everything_is_denied_by_default() -> None:
    (policy,) = (each for each in policies(STACK) if each["metadata"]["name"] == "default-deny")
    assert policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


JOBS = [pod for path in sorted(K8S.glob("*-job.yaml")) for pod in pods(yaml.safe_load_all(path.read_text()))]


@pytest.mark.parametrize("pod", JOBS, ids=lambda pod: pod.owner)
def test_rendered_jobs_reach_what_they_need(pod: Pod) -> None:
    peer = Peer(pod.owner, pod.labels, "cnn-jobs")
    assert allowed(policies(STACK), peer, MLFLOW, 5000)
    assert allowed(policies(STACK), peer, DNS, 53, "UDP")
    downloads = pod.labels["app.kubernetes.io/component"] == "data"
    assert allowed(policies(STACK), peer, INTERNET, 443) is downloads
    watched = pod.labels["app.kubernetes.io/component"] == "training"
    assert allowed(policies(MONITORING), PROMETHEUS, peer, 9090) is watched


def test_all_components_have_jobs() -> None:
    kinds = {pod.labels["app.kubernetes.io/component"] for pod in JOBS}
    assert kinds == {"training", "report", "interpret", "doctor", "data"}


def ddp_policy(job: str) -> dict[str, Any]:
    """The policy of k8s/task4a-ddp-job.yaml, for another Job."""
    text = (K8S / "task4a-ddp-job.yaml").read_text().replace("task4a-ddp", job)
    (found,) = [each for each in yaml.safe_load_all(text) if each["kind"] == "NetworkPolicy"]
    return dict(found)


@pytest.mark.parametrize("port", [29500, 1024, 43210, 65535])
def test_pods_of_a_distributed_training_reach_only_their_own_job_on_every_port(port: int) -> None:
    together = [*policies(STACK), ddp_policy("a"), ddp_policy("b")]
    assert allowed(together, trainer("a"), trainer("a"), port)
    assert not allowed(together, trainer("a"), trainer("b"), port)
    assert not allowed(together, trainer("a"), TRAINING, port)
    assert not allowed(together, TRAINING, trainer("a"), port)
    assert not allowed(together, MLFLOW, trainer("a"), port)
    assert not allowed(together, trainer("a"), INTERNET, port)
    for direction in ("Ingress", "Egress"):
        assert passes(together, direction, trainer("a"), trainer("a"), port)
        for other in (trainer("b"), TRAINING, MLFLOW, UNLABELLED, INTERNET):
            assert not passes(together, direction, trainer("a"), other, port)
    # In addition to what every training pod may.
    assert allowed(together, trainer("a"), MLFLOW, 5000)


@pytest.mark.parametrize("folder", [STACK, STORE, MONITORING, "k8s/overlays/kind", "k8s/overlays/kueue"])
def test_every_policy_is_needed(folder: str) -> None:
    """Without it some connection of the table would fail; thus none is superfluous, and the table covers each."""
    whole = policies(folder)
    rows = [row[1:] for row in TABLE if row[5] and (row[0] in (STACK, folder) or folder.endswith("kind"))]
    rows = [row for row in rows if allowed(whole, *row[:4])]
    for policy in whole:
        rest = [each for each in whole if each is not policy]
        if policy["metadata"]["name"] == "default-deny":
            assert allowed(rest, INTERNET, UNLABELLED, 22)  # DNS's policy would still deny egress
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
def test_selectors(selector: dict[str, Any], labels: dict[str, str], fits: bool) -> None:
    assert matches(selector, labels) is fits


def test_the_evaluator() -> None:
    """A rule without 'to' is for all peers; one end alone is not enough."""
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
    # Without policyTypes a policy applies to ingress, and to egress only if it has egress rules.
    assert allowed([{"metadata": {"namespace": "n"}, "spec": {"podSelector": {}}}], a, INTERNET, 1)
