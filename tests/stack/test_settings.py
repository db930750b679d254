"""Numbers and names that must agree: versions, connections, quotas, options, permissions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import mlflow
import pytest
import yaml

from cnn_jobs import __version__
from cnn_jobs.cli import cli
from cnn_jobs.system.environment import POD_TRACKING_URI
from tests.helpers.job_rules import quantity
from tests.helpers.kustomize import FOLDERS, K8S, PAGE, STACK, Object, build, find, pods

MLFLOW = find(STACK, "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]


def values(container: Object) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


def test_images_and_labels_have_the_installed_versions() -> None:
    images = {c["image"] for folder in FOLDERS for pod in pods(build(folder)) for c in pod.containers}
    ours = {image for image in images if image.startswith("cnn-jobs")}
    assert ours == {f"cnn-jobs:{__version__}", f"cnn-jobs-mlflow:{mlflow.__version__}-1"}
    assert find(STACK, "CronJob", "cnn-jobs-reap")["metadata"]["labels"]["app.kubernetes.io/version"] == __version__
    assert all(f"`{image}`" in PAGE.read_text() for image in ours)


def test_the_database_has_connections_for_all_workers_and_a_gc() -> None:
    (workers,) = (int(argument.partition("=")[2]) for argument in MLFLOW["args"] if argument.startswith("--workers="))
    env = values(MLFLOW)
    size, more = int(env["MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"]), int(env["MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW"])
    assert more > 0  # MLflow takes 0 for "not set", and that is 10
    postgres = find(STACK, "StatefulSet", "postgres")["spec"]["template"]["spec"]["containers"][0]
    (limit,) = (int(a.partition("=")[2]) for a in postgres["args"] if a.startswith("max_connections="))
    # 3 of the process that starts the workers; gc uses SQLAlchemy's defaults, 5 and 10.
    gc = find(STACK, "CronJob", "mlflow-gc")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    assert not [each for each in gc["env"] if "POOL" in each["name"]]
    needed = workers * 2 * (size + more) + 3 + 15
    assert needed == 58
    assert needed <= limit - 3
    assert f"{needed} of PostgreSQL's {limit}" in PAGE.read_text()
    assert find(STACK, "Deployment", "mlflow")["spec"]["replicas"] == 1
    assert find(STACK, "Deployment", "mlflow")["spec"]["strategy"] == {"type": "Recreate"}


def test_the_server_proxies_artifacts_and_has_no_secret_on_its_command_line() -> None:
    line = " ".join([*MLFLOW["command"], *MLFLOW["args"]])
    assert MLFLOW["command"] == ["mlflow", "server"]
    assert not re.search(r"default-artifact-root|backend-store-uri|artifacts-destination|no-serve-artifacts", line)
    names = {each["name"] for each in MLFLOW["env"]}
    assert not names & {"MLFLOW_DEFAULT_ARTIFACT_ROOT", "MLFLOW_SERVE_ARTIFACTS", "MLFLOW_PORT"}
    assert values(MLFLOW)["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert values(MLFLOW)["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_required"


def test_readiness_needs_the_database_and_liveness_does_not() -> None:
    search = "/api/2.0/mlflow/experiments/search?max_results=1"
    assert MLFLOW["readinessProbe"]["httpGet"]["path"] == MLFLOW["startupProbe"]["httpGet"]["path"] == search
    assert MLFLOW["livenessProbe"]["httpGet"]["path"] == "/health"
    # Five minutes to start; 22 s were measured.
    assert MLFLOW["startupProbe"]["periodSeconds"] * MLFLOW["startupProbe"]["failureThreshold"] == 300


def options() -> Iterator[str]:
    """All environment variables of the command line."""

    def walk(command: click.Command) -> Iterator[str]:
        yield from (parameter.envvar for parameter in command.params if isinstance(parameter.envvar, str))
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below
                yield from walk(below)

    yield from walk(cli)


@pytest.mark.parametrize("folder", [STACK, "k8s/overlays/monitoring"])
def test_settings_are_options_of_cnn_jobs_or_mlflow(folder: str) -> None:
    data = find(folder, "ConfigMap", "cnn-jobs")["data"]
    known = set(options()) | {"MLFLOW_TRACKING_URI"}
    assert set(data) <= known
    assert data["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert ("CNN_JOBS_PUSHGATEWAY" in data) is (folder != STACK)
    assert all(isinstance(value, str) for value in data.values())


def test_commands_of_our_image_are_valid() -> None:
    called = []
    for pod in pods(build(STACK)):
        for container in pod.containers:
            if container["image"].startswith("cnn-jobs:"):
                program, *words = [*container["command"], *container.get("args", [])]
                assert program == "cnn-jobs"
                with cli.make_context("cnn-jobs", words) as context:
                    name, command, rest = cli.resolve_command(context, context._protected_args + context.args)
                    assert command
                    with command.make_context(name, rest, parent=context):
                        called.append(name)
    assert called == ["reap"]


def needs(spec: Object, count: int = 1) -> dict[str, float]:
    total: dict[str, float] = {"pods": count}
    for container in spec["containers"]:
        for name, amount in container["resources"]["requests"].items():
            key = f"requests.{name}"
            total[key] = total.get(key, 0) + quantity(amount) * count
    return total


def test_each_job_fits_into_the_quota_beside_the_stack() -> None:
    jobs = [thing for path in sorted(K8S.glob("*-job.yaml")) for thing in yaml.safe_load_all(path.read_text())]
    jobs = [thing for thing in jobs if thing["kind"] == "Job"]
    assert jobs
    for folder in (STACK, "k8s/overlays/in-cluster-store", "k8s/overlays/monitoring"):
        hard = find(folder, "ResourceQuota", "cnn-jobs")["spec"]["hard"]
        standing = [needs(pod.spec) for pod in pods(build(folder))]
        for job in jobs:
            wanted = needs(job["spec"]["template"]["spec"], job["spec"].get("parallelism", 1))
            for name, limit in hard.items():
                used = sum(each.get(name, 0) for each in [*standing, wanted])
                assert used <= quantity(limit), (job["metadata"]["name"], name)


def test_the_quota_for_gpus() -> None:
    key = "requests.nvidia.com/gpu"
    for folder, limit in ((STACK, 8), ("k8s/overlays/cpu", 0), ("k8s/overlays/kind", 0)):
        assert quantity(find(folder, "ResourceQuota", "cnn-jobs")["spec"]["hard"][key]) == limit


def test_the_quota_accepts_what_kueue_admits() -> None:
    folder = "k8s/overlays/kueue"
    hard = find(folder, "ResourceQuota", "cnn-jobs")["spec"]["hard"]
    (group,) = find(folder, "ClusterQueue", "cnn-jobs")["spec"]["resourceGroups"]
    standing = [needs(pod.spec) for pod in pods(build(folder))]
    bounded = [each for each in group["flavors"][0]["resources"] if f"requests.{each['name']}" in hard]
    # No quota limits the disks of nodes.
    assert [each["name"] for each in bounded] == ["cpu", "memory", "nvidia.com/gpu"]
    for resource in bounded:
        key = f"requests.{resource['name']}"
        used = sum(each.get(key, 0) for each in standing)
        assert quantity(resource["nominalQuota"]) + used <= quantity(hard[key])


def test_default_requests_satisfy_the_quota() -> None:
    (limits,) = find(STACK, "LimitRange", "cnn-jobs")["spec"]["limits"]
    hard = find(STACK, "ResourceQuota", "cnn-jobs")["spec"]["hard"]
    asked = {key.partition(".")[2] for key in hard if key.startswith("requests.")} - {"nvidia.com/gpu", "storage"}
    assert set(limits["defaultRequest"]) == asked
    assert quantity(limits["defaultRequest"]["memory"]) <= quantity(limits["default"]["memory"])
    assert "max" not in limits


@pytest.mark.parametrize("folder", ["k8s/overlays/in-cluster-store", "k8s/overlays/kind"])
def test_volumes_fit_into_the_quota_and_seaweedfs_into_its_volume(folder: str) -> None:
    sizes = {}
    for thing in build(folder):
        claims = (
            [thing] if thing["kind"] == "PersistentVolumeClaim" else thing.get("spec", {}).get("volumeClaimTemplates")
        )
        for claim in claims or []:
            sizes[thing["metadata"]["name"]] = quantity(claim["spec"]["resources"]["requests"]["storage"])
            assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert set(sizes) == {"cnn-jobs-data", "postgres", "store"}
    assert sum(sizes.values()) <= quantity(
        find(folder, "ResourceQuota", "cnn-jobs")["spec"]["hard"]["requests.storage"]
    )
    store = find(folder, "StatefulSet", "store")["spec"]["template"]["spec"]["containers"][0]
    (volume,) = (int(a.partition("=")[2]) for a in store["args"] if a.startswith("-master.volumeSizeLimitMB="))
    assert 14 * volume * 2**20 < sizes["store"]


def test_the_role_for_submitting() -> None:
    role = find(STACK, "Role", "cnn-jobs-submit")
    may: dict[tuple[str, str], list[str]] = {
        (group, resource): rule["verbs"]
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert may == {
        ("batch", "jobs"): ["create", "get", "list", "delete"],
        ("", "pods"): ["list"],
        ("", "pods/log"): ["get"],
    }
    binding: dict[str, Any] = find(STACK, "RoleBinding", "cnn-jobs-submit")
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "cnn-jobs-submit"}
    (subject,) = binding["subjects"]
    account = find(STACK, subject["kind"], subject["name"])
    assert (account["metadata"]["namespace"], account["automountServiceAccountToken"]) == (subject["namespace"], False)
    assert not [thing for thing in build(STACK) if thing["kind"].startswith("ClusterRole")]


def test_the_default_tracking_uri_of_pods_is_the_stacks() -> None:
    settings = find(STACK, "ConfigMap", "cnn-jobs")["data"]
    service = find(STACK, "Service", "mlflow")
    (port,) = service["spec"]["ports"]
    assert settings["MLFLOW_TRACKING_URI"] == POD_TRACKING_URI
    assert f"http://{service['metadata']['name']}:{port['port']}" == POD_TRACKING_URI


@pytest.mark.parametrize("folder", FOLDERS)
def test_all_variables_of_the_stacks_pods_are_read(folder: str) -> None:
    """A misspelled variable would have no effect."""
    known = _read_by_mlflow() | _read_by_boto3()
    # Of PostgreSQL's image, and of all programs.
    known |= {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "HOME"}
    for pod in pods(build(folder)):
        for container in pod.containers:
            words = " ".join([*container.get("command", []), *container.get("args", [])])
            for name in (each["name"] for each in container.get("env", [])):
                assert name in known or f"$({name})" in words, f"{pod.owner}: {name}"


def _read_by_mlflow() -> set[str]:
    from mlflow import environment_variables

    names = {str(getattr(value, "name", "")) for value in vars(environment_variables).values()}
    command_line = find_spec("mlflow.cli")
    assert command_line
    assert command_line.origin
    # The source text: importing it would set up MLflow's database.
    return names | set(re.findall(r'envvar="(\w+)"', Path(command_line.origin).read_text()))


def _read_by_boto3() -> set[str]:
    from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES as VARIABLES
    from botocore.credentials import EnvProvider

    found = {EnvProvider.ACCESS_KEY, EnvProvider.SECRET_KEY}
    for _, names, _, _ in VARIABLES.values():
        found |= {names} if isinstance(names, str) else set(names or ())
    return found
