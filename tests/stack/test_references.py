"""Every referenced object exists, or is one that the manual asks the user to create."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kubernetes.utils.quantity import parse_quantity

from tests.helpers.job_files import DOCUMENTS
from tests.helpers.kustomize import (
    FOLDERS,
    K8S,
    PAGE,
    STACK,
    Object,
    Pod,
    block_of_page,
    build,
    find,
    kubectl,
    name_of,
    pods,
    strings,
)
from tests.stack.network import matches

# k8s/monitoring alone does not include the pods that it monitors.
WHOLE = [folder for folder in FOLDERS if folder != "k8s/monitoring"]
WITH_STORE = ("k8s/overlays/in-cluster-store", "k8s/overlays/kind")
ROW = re.compile(r"^\| `(?P<secret>[\w-]+)` \| (?:`(?P<key>\w+)`|any) \| (?P<need>needed|optional) \|", re.M)
DOCUMENTED = {(row["secret"], row["key"] or "*"): row["need"] == "needed" for row in ROW.finditer(PAGE.read_text())}
PODS = [pytest.param(folder, pod, id=f"{folder}:{pod.owner}") for folder in WHOLE for pod in pods(build(folder))]


def secrets_read(pod: Pod) -> Iterator[tuple[str, str, bool]]:
    """Secret, key ("*" for all) and whether the pod requires it."""
    for container in pod.containers:
        for each in container.get("envFrom", []):
            if source := each.get("secretRef"):
                yield source["name"], "*", not source.get("optional", False)
        for each in container.get("env", []):
            if source := each.get("valueFrom", {}).get("secretKeyRef"):
                yield source["name"], source["key"], not source.get("optional", False)
    for volume in pod.spec.get("volumes", []):
        if source := volume.get("secret"):
            yield source["secretName"], "*", not source.get("optional", False)


@pytest.mark.parametrize(("folder", "pod"), PODS)
def test_secrets_of_pods_are_in_the_manual(folder: str, pod: Pod) -> None:
    for secret, key, needed in secrets_read(pod):
        assert (secret, key) in DOCUMENTED
        # Required by the store in the cluster, but not by Amazon's S3.
        own_store = folder in WITH_STORE and key == "MLFLOW_S3_ENDPOINT_URL"
        assert needed == DOCUMENTED[secret, key] or own_store


def test_the_manual_lists_only_secrets_that_are_read() -> None:
    everything = [pod for folder in WHOLE for pod in pods(build(folder))]
    everything += [pod for path in K8S.glob("*-job.yaml") for pod in pods(yaml.safe_load_all(path.read_text()))]
    read = {(secret, key) for pod in everything for secret, key, _ in secrets_read(pod)}
    assert read == set(DOCUMENTED)


def test_the_manuals_command_creates_all_keys_with_random_passwords() -> None:
    lines = block_of_page("secret").replace("kubectl create", "kubectl --dry-run=client -o yaml create")
    made = [_run(lines.split("\n", 1)[1]) for _ in range(2)]
    for secret in made:
        assert (secret["metadata"]["name"], secret["metadata"]["namespace"]) == ("mlflow-server", "cnn-jobs")
        data = {key: _plain(value) for key, value in secret["data"].items()}
        wanted = {key for (name, key), needed in DOCUMENTED.items() if name == "mlflow-server" and needed}
        assert set(data) == wanted | {"MLFLOW_S3_ENDPOINT_URL"}
        assert re.fullmatch(r"[0-9a-f]{48}", data["POSTGRES_PASSWORD"])
        user, password, host = re.fullmatch(  # type: ignore[union-attr]
            r"postgresql\+psycopg://(\w+):(\w+)@([\w:/]+)", data["MLFLOW_BACKEND_STORE_URI"]
        ).groups()
        assert (user, password, host) == ("mlflow", data["POSTGRES_PASSWORD"], "postgres:5432/mlflow")
        assert data["MLFLOW_S3_ENDPOINT_URL"] == "http://store:8333"
        assert re.fullmatch(r"[0-9a-f]{20}", data["AWS_ACCESS_KEY_ID"])
        assert re.fullmatch(r"[0-9a-f]{40}", data["AWS_SECRET_ACCESS_KEY"])
    assert made[0]["data"] != made[1]["data"]


def _run(script: str) -> Object:
    own = Path(sys.executable).parent
    environment = {"KUBECONFIG": "/dev/null", "PATH": f"{own}:/usr/local/bin:/usr/bin:/bin"}
    ran = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    made: Object = yaml.safe_load(ran.stdout)
    return made


def _plain(value: str) -> str:
    return base64.b64decode(value).decode()


@pytest.mark.parametrize(("folder", "pod"), PODS)
def test_config_maps_claims_and_accounts_of_pods_exist(folder: str, pod: Pod) -> None:
    there = {name_of(thing) for thing in build(folder)}
    wanted = set()
    for container in pod.containers:
        wanted |= {
            f"ConfigMap/{e['configMapRef']['name']}" for e in container.get("envFrom", []) if "configMapRef" in e
        }
        for each in container.get("env", []):
            if source := each.get("valueFrom", {}).get("configMapKeyRef"):
                wanted.add(f"ConfigMap/{source['name']}")
                assert source["key"] in find(folder, "ConfigMap", source["name"])["data"]
    for volume in pod.spec.get("volumes", []):
        if "configMap" in volume:
            wanted.add(f"ConfigMap/{volume['configMap']['name']}")
        if "persistentVolumeClaim" in volume:
            wanted.add(f"PersistentVolumeClaim/{volume['persistentVolumeClaim']['claimName']}")
    if account := pod.spec.get("serviceAccountName"):
        wanted.add(f"ServiceAccount/{account}")
    assert wanted <= there


def test_references_of_jobs_are_in_the_stack() -> None:
    jobs = [pod for path in K8S.glob("*-job.yaml") for pod in pods(yaml.safe_load_all(path.read_text()))]
    named = {text for pod in jobs for text in _names(pod)}
    secrets = {"Secret/cnn-jobs", "Secret/cnn-jobs-sources"}
    assert named == {"ConfigMap/cnn-jobs", "PersistentVolumeClaim/cnn-jobs-data", *secrets}
    assert named - secrets <= {name_of(thing) for thing in build(STACK)}
    assert all((name.partition("/")[2], "*") in DOCUMENTED for name in secrets)


def _names(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        for each in container.get("envFrom", []):
            yield from (f"ConfigMap/{each[kind]['name']}" for kind in each if kind == "configMapRef")
            yield from (f"Secret/{each[kind]['name']}" for kind in each if kind == "secretRef")
    for volume in pod.spec.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            yield f"PersistentVolumeClaim/{volume['persistentVolumeClaim']['claimName']}"


@pytest.mark.parametrize(("folder", "pod"), PODS)
def test_mounts_and_probes_use_volumes_and_ports_of_the_pod(folder: str, pod: Pod) -> None:
    owner = next(thing for thing in build(folder) if name_of(thing) == pod.owner)
    claimed = {claim["metadata"]["name"] for claim in owner["spec"].get("volumeClaimTemplates", [])}
    volumes = {volume["name"] for volume in pod.spec.get("volumes", [])} | claimed
    for container in pod.containers:
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
        names = {port["name"] for port in container.get("ports", [])}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            if request := container.get(kind, {}).get("httpGet"):
                assert request["port"] in names
    assert volumes == {mount["name"] for container in pod.containers for mount in container.get("volumeMounts", [])}


@pytest.mark.parametrize("folder", WHOLE)
def test_services_select_pods(folder: str) -> None:
    everything = list(pods(build(folder)))
    services = [thing for thing in build(folder) if thing["kind"] == "Service"]
    for service in services:
        (pod,) = (pod for pod in everything if matches({"matchLabels": service["spec"]["selector"]}, pod.labels))
        for port in service["spec"]["ports"]:
            (found,) = (p for c in pod.containers for p in c.get("ports", []) if p["name"] == port["targetPort"])
            assert found["containerPort"] == port["port"]
    for thing in build(folder):
        if thing["kind"] in ("Deployment", "StatefulSet"):
            assert matches(thing["spec"]["selector"], thing["spec"]["template"]["metadata"]["labels"])
        if thing["kind"] == "StatefulSet":
            assert thing["spec"]["serviceName"] in [service["metadata"]["name"] for service in services]


@pytest.mark.parametrize("folder", WHOLE)
def test_cluster_addresses_are_services_with_that_port(folder: str) -> None:
    settings = [value for thing in build(folder) if thing["kind"] == "ConfigMap" for value in thing["data"].values()]
    given = [e.get("value", "") for pod in pods(build(folder)) for c in pod.containers for e in c.get("env", [])]
    secret = "http://store:8333 postgres:5432" if any("store" in name_of(o) for o in build(folder)) else ""
    found = re.findall(r"(?:^http://|@| |^)([a-z][a-z-]*):(\d+)(?:$|/| )", "\n".join([*settings, *given, secret]), re.M)
    assert ("mlflow", "5000") in found
    for name, port in found:
        ports = [each["port"] for each in find(folder, "Service", name)["spec"]["ports"]]
        assert int(port) in ports


@pytest.mark.parametrize("folder", FOLDERS)
def test_monitors_select_pods_with_their_port(folder: str) -> None:
    for thing in build(folder):
        if thing["kind"] == "PodMonitor" and thing["metadata"]["name"] != "cnn-jobs":  # of the Jobs
            (pod,) = (pod for pod in pods(build(folder)) if matches(thing["spec"]["selector"], pod.labels))
            names = {port["name"] for container in pod.containers for port in container["ports"]}
            assert {endpoint["port"] for endpoint in thing["spec"]["podMetricsEndpoints"]} <= names


def test_the_queue_has_a_flavour_and_the_label_of_the_manual() -> None:
    folder = "k8s/overlays/kueue"
    queue = find(folder, "LocalQueue", "cnn-jobs")
    (group,) = find(folder, "ClusterQueue", queue["spec"]["clusterQueue"])["spec"]["resourceGroups"]
    for flavour in group["flavors"]:
        assert find(folder, "ResourceFlavor", flavour["name"])
        assert [each["name"] for each in flavour["resources"]] == group["coveredResources"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a", "namespace": "cnn-jobs"}, "spec": {}}
    words = block_of_page("queue").split(" | ")[0].split()
    assert words[:4] == ["kubectl", "label", "--local", "-f"]
    labelled = yaml.safe_load(kubectl("label", "--local", "-f", "-", *words[5:], given=yaml.safe_dump(job)))
    assert labelled["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": queue["metadata"]["name"]}


def test_the_queue_covers_everything_that_a_job_requests() -> None:
    """Kueue admits no Job that requests a resource which its queue does not cover."""
    queue = find("k8s/overlays/kueue", "ClusterQueue", "cnn-jobs")["spec"]
    (group,) = queue["resourceGroups"]
    (flavour,) = group["flavors"]
    room = {each["name"]: parse_quantity(each["nominalQuota"]) for each in flavour["resources"]}
    for name, job in DOCUMENTS.items():
        pods_at_once = job["spec"].get("parallelism", 1)
        for container in job["spec"]["template"]["spec"]["containers"]:
            requests = container["resources"]["requests"]
            assert requests.keys() <= set(group["coveredResources"]), name
            for resource, quantity in requests.items():
                assert pods_at_once * parse_quantity(quantity) <= room[resource], (name, resource)
    labels = find("k8s/overlays/kueue", "Namespace", "cnn-jobs")["metadata"]["labels"]
    assert queue["namespaceSelector"]["matchLabels"].items() <= labels.items()


def test_another_namespace_is_used_everywhere(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    (tmp_path / "own").mkdir()
    content = {"namespace": "team-a", "resources": ["../k8s/overlays/in-cluster-store"]}
    (tmp_path / "own/kustomization.yaml").write_text(yaml.safe_dump(content))
    made = list(yaml.safe_load_all(kubectl("kustomize", str(tmp_path / "own"))))
    assert {thing["metadata"].get("namespace", thing["metadata"]["name"]) for thing in made} == {"team-a"}
    assert [subject["namespace"] for thing in made for subject in thing.get("subjects", [])] == ["team-a"]
    assert not [text for thing in made for text in strings(thing) if "cnn-jobs.svc" in text]
    assert not [text for thing in made for text in strings(thing.get("spec", {})) if "mlflow.cnn-jobs" in text]


def test_the_manuals_volume_for_several_nodes_builds_and_fits_the_quota(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    (tmp_path / "my-cluster").mkdir()
    (tmp_path / "my-cluster/kustomization.yaml").write_text(block_of_page("nodes"))
    made = {name_of(thing): thing for thing in yaml.safe_load_all(kubectl("kustomize", str(tmp_path / "my-cluster")))}
    claim = made["PersistentVolumeClaim/cnn-jobs-data"]["spec"]
    assert (claim["accessModes"], claim["storageClassName"]) == (["ReadWriteMany"], "standard-rwx")
    assert claim["resources"]["requests"]["storage"] == "1Ti"
    assert made["ResourceQuota/cnn-jobs"]["spec"]["hard"]["requests.storage"] == "2Ti"


def test_the_manuals_combination_of_overlays_builds(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    (tmp_path / "my-cluster").mkdir()
    (tmp_path / "my-cluster/kustomization.yaml").write_text(block_of_page("own"))
    made = list(yaml.safe_load_all(kubectl("kustomize", str(tmp_path / "my-cluster"))))
    images = {container["image"] for pod in pods(made) for container in pod.containers}
    assert {image for image in images if "cnn-jobs" in image} == {
        "registry.example.com/cnn-jobs:0.1.0",
        "registry.example.com/cnn-jobs-mlflow:3.17.2-1",
    }
    assert {"StatefulSet/store", "Deployment/pushgateway", "LocalQueue/cnn-jobs"} <= {name_of(thing) for thing in made}
