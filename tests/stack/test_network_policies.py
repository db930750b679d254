"""Who reaches whom, by the policies of the stack and its overlays, evaluated for every pair that matters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from tests.helpers.kustomize import K8S, STACK, Pod, build, pods
from tests.stack.network import Peer, allowed, matches, passes
from tests.stack.network_table import (
    DNS,
    ENDS,
    EVERYBODY,
    INTERNET,
    MLFLOW,
    MONITORING,
    PROMETHEUS,
    STORE,
    STRANGER,
    TABLE,
    TRAINING,
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
def test_each_end_lets_through_whom_it_should_and_nobody_else(
    folder: str, direction: str, owner: Peer, port: int, others: list[Peer]
) -> None:
    found = [peer.name for peer in EVERYBODY if passes(policies(folder), direction, owner, peer, port)]
    assert found == [peer.name for peer in EVERYBODY if peer in others]


def test_the_default_is_nothing_for_everybody_in_both_directions() -> None:
    (policy,) = (each for each in policies(STACK) if each["metadata"]["name"] == "default-deny")
    assert policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


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
    """That of k8s/task4a-ddp-job.yaml, for another Job."""
    text = (K8S / "task4a-ddp-job.yaml").read_text().replace("task4a-ddp", job)
    (found,) = [each for each in yaml.safe_load_all(text) if each["kind"] == "NetworkPolicy"]
    return dict(found)


@pytest.mark.parametrize("port", [29500, 1024, 43210, 65535])
def test_pods_of_a_distributed_training_reach_their_own_job_on_every_port_and_no_other(port: int) -> None:
    together = [*policies(STACK), ddp_policy("a"), ddp_policy("b")]
    assert allowed(together, trainer("a"), trainer("a"), port)
    assert not allowed(together, trainer("a"), trainer("b"), port)
    assert not allowed(together, trainer("a"), TRAINING, port)
    assert not allowed(together, TRAINING, trainer("a"), port)
    assert not allowed(together, MLFLOW, trainer("a"), port)
    assert not allowed(together, trainer("a"), INTERNET, port)
    for direction in ("Ingress", "Egress"):
        assert passes(together, direction, trainer("a"), trainer("a"), port)
        for other in (trainer("b"), TRAINING, MLFLOW, STRANGER, INTERNET):
            assert not passes(together, direction, trainer("a"), other, port)
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
