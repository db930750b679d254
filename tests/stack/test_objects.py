"""All objects of 'kubectl apply -k': valid, confined, with fixed image tags, and without secrets."""

from __future__ import annotations

import copy
import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.helpers.kustomize import CUSTOM, FOLDERS, K8S, ROOT, STACK, Pod, build, find, name_of, pods, strings
from tests.helpers.pod_security import violations

VERSIONS = [f"1.{minor}" for minor in range(31, 38)]
ALL_PODS = [pytest.param(pod, id=f"{folder}:{pod.owner}") for folder in FOLDERS for pod in pods(build(folder))]
SECRET_NAME = re.compile(r"(?i)passw|secret|token|_key$|key_id$|credential")
# A login in a URL; the @ of an image reference or mail address has no colon before it.
LOGIN = re.compile(r"://[^/\s:@]*:[^/\s@]+@")


def test_the_overlays() -> None:
    assert FOLDERS[2:] == [f"k8s/overlays/{n}" for n in ("cpu", "in-cluster-store", "kind", "kueue", "monitoring")]


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_are_unique_and_namespaces_are_set(folder: str) -> None:
    names = [name_of(thing) for thing in build(folder)]
    assert len(set(names)) == len(names)
    for thing in build(folder):
        everywhere = thing["kind"] in ("Namespace", "ResourceFlavor", "ClusterQueue")
        assert thing["metadata"].get("namespace") == (None if everywhere else "cnn-jobs"), name_of(thing)
        assert "managed-by" not in str(thing["metadata"].get("labels", {}))


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_can_be_applied_again(folder: str) -> None:
    """An existing Job cannot be changed; a Deployment, StatefulSet or CronJob can."""
    assert not [name_of(thing) for thing in build(folder) if thing["kind"] in ("Job", "Pod")]


@pytest.mark.parametrize("folder", FOLDERS)
def test_objects_come_after_those_that_they_need(folder: str) -> None:
    kinds = [thing["kind"] for thing in build(folder)]
    first = ["Namespace", "ResourceQuota", "ServiceAccount", "ConfigMap", "LimitRange", "PersistentVolumeClaim"]
    makers = [number for number, kind in enumerate(kinds) if kind in ("Deployment", "StatefulSet", "CronJob")]
    if folder != "k8s/monitoring":
        assert kinds[0] == "Namespace"
        assert max(kinds.index(kind) for kind in first) < min(makers)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_objects_are_valid(folder: str, version: str) -> None:
    checked = 0
    for thing in build(folder):
        if thing["kind"] not in CUSTOM:
            kubernetes_validate.validate(thing, version, strict=True)
            checked += 1
    assert checked >= 4


@pytest.mark.parametrize(
    "spoil",
    [
        lambda spec: spec.update(replica=1),
        lambda spec: spec.update(replicas="1"),
        lambda spec: spec["template"]["spec"]["containers"][0].update(resource={}),
        lambda spec: spec.pop("selector"),
    ],
)
def test_the_schemas_detect_errors(spoil: Any) -> None:
    thing = copy.deepcopy(find(STACK, "Deployment", "mlflow"))
    spoil(thing["spec"])
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(thing, VERSIONS[0], strict=True)


def test_versions_of_custom_kinds() -> None:
    found = {(thing["kind"], thing["apiVersion"]) for folder in FOLDERS for thing in build(folder)}
    assert {(kind, version) for kind, version in found if kind in CUSTOM} == {
        ("PodMonitor", "monitoring.coreos.com/v1"),
        ("PrometheusRule", "monitoring.coreos.com/v1"),
        ("ResourceFlavor", "kueue.x-k8s.io/v1beta2"),
        ("ClusterQueue", "kueue.x-k8s.io/v1beta2"),
        ("LocalQueue", "kueue.x-k8s.io/v1beta2"),
    }


def test_the_namespace_enforces_restricted() -> None:
    labels = find(STACK, "Namespace", "cnn-jobs")["metadata"]["labels"]
    levels = {key.partition("/")[2]: value for key, value in labels.items() if key.startswith("pod-security")}
    assert levels == {
        "enforce": "restricted",
        "enforce-version": f"v{VERSIONS[0]}",
        "warn": "restricted",
        "warn-version": "latest",
        "audit": "restricted",
        "audit-version": "latest",
    }


@pytest.mark.parametrize("pod", ALL_PODS)
def test_pod_security_restricted(pod: Pod) -> None:
    assert violations({"spec": pod.spec}) == []


@pytest.mark.parametrize("pod", ALL_PODS)
def test_pods_are_confined_further(pod: Pod) -> None:
    assert pod.spec["automountServiceAccountToken"] is False
    # A Service named mlflow would set MLFLOW_PORT in every pod of the namespace.
    assert pod.spec["enableServiceLinks"] is False
    assert pod.labels["app.kubernetes.io/part-of"] == "cnn-jobs"
    for container in pod.containers:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert set(container["resources"]["limits"]) == {"memory"}
    assert all("sizeLimit" in volume["emptyDir"] for volume in pod.spec.get("volumes", []) if "emptyDir" in volume)


@pytest.mark.parametrize("pod", ALL_PODS)
def test_images_have_versions(pod: Pod) -> None:
    for container in pod.containers:
        _, _, tag = container["image"].rpartition("/")[2].partition(":")
        assert re.fullmatch(r"v?\d+(\.\d+)+(-\d+)?", tag), container["image"]
        own = container["image"].startswith("cnn-jobs")
        assert container["imagePullPolicy"] in ({"Never", "IfNotPresent"} if own else {"IfNotPresent"})


def test_kind_never_pulls_our_images() -> None:
    pulled = {(c["image"], c["imagePullPolicy"]) for pod in pods(build("k8s/overlays/kind")) for c in pod.containers}
    assert {(image, how) for image, how in pulled if image.startswith("cnn-jobs")} == {
        ("cnn-jobs:0.1.0", "Never"),
        ("cnn-jobs-mlflow:3.17.2-1", "Never"),
    }
    # Volumes use the default storage class, and no path of the node.
    for thing in build("k8s/overlays/kind"):
        assert not {"hostPath", "storageClassName"} & set(strings(thing))


@pytest.mark.parametrize("folder", FOLDERS)
def test_objects_contain_no_secret(folder: str) -> None:
    for thing in build(folder):
        assert thing["kind"] != "Secret"
        assert not [text for text in strings(thing) if LOGIN.search(text)]
        data = thing.get("data", {}) if thing["kind"] == "ConfigMap" else {}
        assert not [key for key in data if SECRET_NAME.search(key)]
    for pod in pods(build(folder)):
        for container in pod.containers:
            named = [each for each in container.get("env", []) if SECRET_NAME.search(each["name"])]
            assert all(set(each) == {"name", "valueFrom"} for each in named), container["name"]
            # ... and none is on a command line, which everybody may read.
            line = " ".join([*container.get("command", []), *container.get("args", [])])
            assert not re.search(r"\$\((?!POD_IP|POD_NAMESPACE|INGRESS_HOSTS)", line)


def test_files_contain_no_secret_and_are_all_used() -> None:
    listed = set()
    for path in K8S.rglob("*.yaml"):
        text = path.read_text()
        assert not LOGIN.search(text), path
        if path.name == "kustomization.yaml":
            content = yaml.safe_load(text)
            named = [*content.get("resources", []), *(p["path"] for p in content.get("patches", []) if "path" in p)]
            listed |= {(path.parent / name).resolve() for name in named}
    files = {p for part in ("stack", "overlays") for p in (K8S / part).rglob("*") if p.is_file()}
    assert {str(p.relative_to(ROOT)) for p in files if p.name != "kustomization.yaml" and p not in listed} == set()
