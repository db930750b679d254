"""The parts of the end-to-end suite, tested without a cluster."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cnn_jobs.local_server.server import free_port
from tests.e2e import jobs, names, network, overlay
from tests.e2e.kubectl import Cluster, Hopeless, check_can_start
from tests.e2e.settings import VARIABLES, Settings, read, split_image, why_not
from tests.helpers.job_rules import refusals
from tests.helpers.kustomize import ROOT, kubectl, pods
from tests.helpers.pod_security import violations
from tests.helpers.postgres_server import has_postgres, program
from tests.helpers.waiting import until

VERSIONS = ("1.31", "1.36")
IMAGE = "registry.example:5000/team/cnn-jobs:0.1.0"
OWN_S3 = {
    "artifacts_destination": "s3://bucket/prefix",
    "s3_endpoint_url": "http://s3.example:9000",
    "aws_access_key_id": "key",
    "aws_secret_access_key": "secret",
}
CLUSTERS = {
    "plain": Settings(image=IMAGE),
    "images": Settings(
        image=IMAGE,
        mlflow_image="m:1",
        postgres_image="p:2",
        store_image="s@sha256:" + "a" * 64,
        storage_class="fast",
        store_command="moto_server -H 0.0.0.0 -p 8333",
    ),
    "own": Settings(image=IMAGE, backend_store_uri="postgresql+psycopg://me:word@db.example:5433/mlflow", **OWN_S3),
    "volume": Settings(image=IMAGE, artifacts_destination="volume", postgres_plain=True, postgres_user=101),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """All objects of each overlay, as built by kustomize."""
    found = {}
    for name, settings in CLUSTERS.items():
        folder = overlay.write(tmp_path_factory.mktemp(name), settings)
        found[name] = list(yaml.safe_load_all(kubectl("kustomize", str(folder))))
    return found


def find(objects: list[Any], kind: str, name: str) -> Any:
    (found,) = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def container(objects: list[Any], kind: str, name: str) -> Any:
    return find(objects, kind, name)["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("name", CLUSTERS)
def test_overlays_are_valid_restricted_and_in_their_namespace(built: dict[str, list[Any]], name: str) -> None:
    for thing in [*built[name], overlay.secret(CLUSTERS[name])]:
        for version in VERSIONS:
            kubernetes_validate.validate(thing, version, strict=True)
        if thing["kind"] == "Namespace":
            assert thing["metadata"]["name"] == "cnn-jobs-e2e"
            assert thing["metadata"]["labels"][overlay.LABEL] == "true"
        else:
            assert thing["metadata"]["namespace"] == "cnn-jobs-e2e", thing["metadata"]
    assert [
        violation for pod in pods(built[name]) for violation in violations({"metadata": {}, "spec": pod.spec})
    ] == []
    (subject,) = find(built[name], "RoleBinding", "cnn-jobs-submit")["subjects"]
    assert subject["namespace"] == "cnn-jobs-e2e"


@pytest.mark.parametrize("name", CLUSTERS)
def test_overlays_fit_a_node_with_two_cpus(built: dict[str, list[Any]], name: str) -> None:
    standing = [pod for pod in pods(built[name]) if not pod.owner.startswith("CronJob/")]
    wanted = [each["resources"]["requests"]["cpu"] for pod in standing for each in pod.containers]
    assert sum(int(cpu.removesuffix("m")) for cpu in wanted) <= 500
    assert find(built[name], "ConfigMap", "cnn-jobs")["data"]["CNN_JOBS_DATA"] == "shapes"
    assert all(each["spec"]["suspend"] for each in built[name] if each["kind"] == "CronJob")


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_secret_has_all_keys_that_pods_need(built: dict[str, list[Any]], name: str) -> None:
    given = overlay.secret(CLUSTERS[name])["stringData"]
    for pod in pods(built[name]):
        for each in (each for box in pod.containers for each in box.get("env", [])):
            reference = each.get("valueFrom", {}).get("secretKeyRef", {})
            assert not reference or reference.get("optional") or reference["key"] in given, (pod.owner, reference)
    assert given["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql+psycopg://")


def test_images_and_storage_classes_are_set(built: dict[str, list[Any]]) -> None:
    images = {each["image"] for pod in pods(built["images"]) for each in pod.containers}
    assert images == {IMAGE, "m:1", "p:2", "s@sha256:" + "a" * 64}
    store = container(built["images"], "StatefulSet", "store")
    assert store["command"] == ["moto_server", "-H", "0.0.0.0", "-p", "8333"]
    assert "args" not in store
    assert store["readinessProbe"]["tcpSocket"] == {"port": "s3"}
    for thing in built["images"]:
        for claim in (
            [thing]
            if thing["kind"] == "PersistentVolumeClaim"
            else thing.get("spec", {}).get("volumeClaimTemplates", [])
        ):
            assert claim["spec"]["storageClassName"] == "fast"
    assert {each["image"] for pod in pods(built["plain"]) for each in pod.containers} >= {IMAGE, "postgres:18.4"}


def test_external_services_replace_those_of_the_stack(built: dict[str, list[Any]]) -> None:
    objects = built["own"]
    names = {(each["kind"], each["metadata"]["name"]) for each in objects}
    assert not {each for each in names if each[1] in ("postgres", "store", "store-bucket")}
    ports = {
        name: [
            port["port"] for rule in find(objects, "NetworkPolicy", name)["spec"]["egress"] for port in rule["ports"]
        ]
        for name in ("mlflow", "mlflow-gc", "mlflow-to-s3")
    }
    assert 5433 in ports["mlflow"]
    assert 5433 in ports["mlflow-gc"]
    assert ports["mlflow-to-s3"] == [9000]
    given = overlay.secret(CLUSTERS["own"])["stringData"]
    assert (given["AWS_ACCESS_KEY_ID"], given["MLFLOW_S3_ENDPOINT_URL"]) == ("key", "http://s3.example:9000")


def test_the_artifact_volume_is_mounted(built: dict[str, list[Any]]) -> None:
    box = container(built["volume"], "Deployment", "mlflow")
    (mount,) = [each for each in box["volumeMounts"] if each["name"] == "artifacts"]
    assert overlay.secret(CLUSTERS["volume"])["stringData"]["MLFLOW_ARTIFACTS_DESTINATION"] == mount["mountPath"]
    assert find(built["volume"], "PersistentVolumeClaim", "mlflow-artifacts")
    postgres = find(built["volume"], "StatefulSet", "postgres")["spec"]["template"]["spec"]
    assert postgres["securityContext"]["runAsUser"] == postgres["securityContext"]["fsGroup"] == 101
    assert postgres["containers"][0]["command"] == ["sh", "-ec", overlay.PLAIN_POSTGRES]


@pytest.mark.integration
@pytest.mark.skipif(not has_postgres() or os.geteuid() != 0, reason="needs PostgreSQL, and root to switch to its user")
def test_the_script_for_plain_postgres_creates_the_database_once(tmp_path: Path) -> None:
    import psycopg

    port = free_port()
    home = Path("/tmp") / f"cnn-jobs-plain-{port}"  # this user cannot enter pytest's folders
    home.mkdir()
    os.chown(home, 65534, 65534)
    script = overlay.PLAIN_POSTGRES.replace("/var/lib/postgresql", str(home)).replace("/var/run/postgresql", str(home))
    script = script.replace("/tmp/password", f"{home}/password").replace("'*'", f"127.0.0.1 -p {port}")
    env = {"PATH": f"{Path(program('initdb')).parent}:/usr/bin:/bin", "POSTGRES_PASSWORD": "of-a-test"}

    def ask(text: str) -> Any:
        try:
            with psycopg.connect(f"postgresql://mlflow:of-a-test@127.0.0.1:{port}/mlflow", autocommit=True) as own:
                return own.execute(text).fetchone()
        except psycopg.OperationalError:
            return None

    try:
        for question in ("create table kept (n int); select 1", "select count(*) from kept"):
            words = ["sh", "-ec", script]
            process = subprocess.Popen(words, env=env, cwd=home, user=65534, group=65534, extra_groups=[])
            try:
                until(lambda question=question: ask("select 1"))
                if question.startswith("create"):
                    with psycopg.connect(
                        f"postgresql://mlflow:of-a-test@127.0.0.1:{port}/mlflow", autocommit=True
                    ) as own:
                        own.execute("create table kept (n int)")
                else:
                    assert ask(question) == (0,)
            finally:
                process.terminate()
                process.wait(30)
    finally:
        shutil.rmtree(home)


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("cnn-jobs:0.1.0", ("cnn-jobs", "0.1.0", "")),
        ("r.example:5000/a/b:1", ("r.example:5000/a/b", "1", "")),
        ("r.example:5000/a/b", ("r.example:5000/a/b", "", "")),
        ("b:1@sha256:ab", ("b", "1", "sha256:ab")),
        ("b@sha256:ab", ("b", "", "sha256:ab")),
    ],
)
def test_split_image(image: str, parts: tuple[str, str, str]) -> None:
    assert split_image(image) == parts


def test_missing_settings_are_reported() -> None:
    assert why_not({}).startswith("KUBECONFIG and E2E_IMAGE not set")
    assert why_not({"KUBECONFIG": "x"}).startswith("E2E_IMAGE not set")
    assert why_not({"KUBECONFIG": "x", "E2E_IMAGE": IMAGE}) == ""


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"E2E_IMAGE": "cnn-jobs"}, "no tag"),
        ({"E2E_MLFLOW_IMAGE": "mlflow"}, "E2E_MLFLOW_IMAGE is 'mlflow', but needs a tag"),
        ({"E2E_ARTIFACTS_DESTINATION": "/mnt"}, "must be s3://"),
        ({"E2E_ARTIFACTS_DESTINATION": "s3://bucket"}, "E2E_AWS_ACCESS_KEY_ID"),
        ({"E2E_BACKEND_STORE_URI": "sqlite:////x.db"}, "must look like postgresql"),
        ({"E2E_PATIENCE": "much"}, "must be a number"),
        ({"E2E_NAMSPACE": "x"}, "E2E_NAMSPACE: no such setting"),
        ({"E2E_REQUIRE_NETWORK_POLICY": "yes"}, "must be 0 or 1"),
    ],
)
def test_invalid_settings_are_refused(more: dict[str, str], words: str) -> None:
    with pytest.raises(Exception, match=words):
        read({"E2E_IMAGE": IMAGE, **more})


def test_settings_are_read_and_documented() -> None:
    given = {"E2E_IMAGE": IMAGE, "E2E_PATIENCE": "2", "E2E_POSTGRES_PLAIN": "1", "E2E_POSTGRES_USER": "101"}
    assert read(given) == Settings(image=IMAGE, patience=2.0, postgres_plain=True, postgres_user=101)
    manual = (ROOT / "docs/e2e.md").read_text()
    assert [name for name in VARIABLES if f"`{name}`" not in manual] == []


@pytest.mark.parametrize("name", ["task2", "task2-seeds", "report", "task2-ddp"])
def test_reduced_jobs_are_valid(name: str, tmp_path: Path) -> None:
    objects = jobs.render(Cluster("team-a"), Settings(image=IMAGE, namespace="team-a"), tmp_path, name)
    job = jobs.small(objects[0], arguments=("--epochs", "2"), env={"CNN_JOBS_LR": "0.1"}, backoffLimit=0)
    if "backoffLimitPerIndex" not in job["spec"]:
        assert refusals(job) == []
    for version in VERSIONS:
        kubernetes_validate.validate(job, version, strict=True)
    (box,) = job["spec"]["template"]["spec"]["containers"]
    assert (box["resources"]["requests"]["cpu"], box["image"]) == ("250m", IMAGE)
    assert {"name": "CNN_JOBS_LR", "value": "0.1"} in box["env"]
    assert box["args"][-2:] == ["--epochs", "2"]
    assert {each["metadata"]["namespace"] for each in objects} == {"team-a"}


def test_a_dry_run_of_submit_can_be_reduced() -> None:
    words = ("submit", "task2", "--set", "epochs=1", "--seed", "7", "--gpu", "0", "--image", IMAGE)
    printed = yaml.safe_load(Cluster("team-a").program(*words, "--namespace", "team-a", "--dry-run"))
    assert refusals(jobs.small(printed)) == []
    for command in ("status", "logs", "cancel"):
        Cluster("team-a").program(command, "--help")


def test_probe_pods_are_valid_and_restricted() -> None:
    pod = network.probe(CLUSTERS["plain"], "probe", "training", {"mlflow": ("10.0.0.1", 5000)}, {})
    kubernetes_validate.validate(pod, VERSIONS[0], strict=True)
    assert violations(pod) == []


class ScriptedCluster(Cluster):
    """A cluster that returns listed answers, one state of the pods after another."""

    def __init__(self, *states: list[Any], job: Any = None, objects: dict[str, Any] | None = None) -> None:
        super().__init__("cnn-jobs-e2e")
        self.states, self.job, self.objects = list(states), job or {"status": {}}, objects or {}

    def pods(self, job: str) -> list[Any]:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def get(self, *arguments: str) -> Any:
        return self.job if arguments[0] == "job" else self.objects[arguments[1]]

    def list(self, *arguments: str) -> Any:
        return self.objects[arguments[0]]


def job_pod(name: str, made: str, *, ended: str = "", phase: str = "Running") -> Any:
    state = {"terminated": {"finishedAt": f"2026-11-26T10:00:{ended}Z", "exitCode": 75}} if ended else {"running": {}}
    return {
        "metadata": {"name": name, "creationTimestamp": f"2026-11-26T10:00:{made}Z"},
        "status": {"phase": phase, "containerStatuses": [{"state": state}]},
    }


def test_the_next_pod_is_created_after_the_first_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    first, over = job_pod("a", "00"), job_pod("a", "00", ended="20", phase="Failed")
    good = ScriptedCluster([first], [over], [over, job_pod("b", "30")])
    assert jobs.next_pod(good, "x", "a") == "b"
    gone = ScriptedCluster([first], [job_pod("b", "30")])  # deleted before its end was seen
    assert jobs.next_pod(gone, "x", "a") == "b"
    early = ScriptedCluster([first], [over, job_pod("b", "10")])
    with pytest.raises(
        Hopeless, match="a ended at 2026-11-26T10:00:20Z, the next pod was created at 2026-11-26T10:00:10Z"
    ):
        jobs.next_pod(early, "x", "a")
    failed = {"status": {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}}
    with pytest.raises(Hopeless, match="over without another pod"):
        jobs.next_pod(ScriptedCluster([over], job=failed), "x", "a")


def test_only_an_api_server_on_the_own_node_is_ignored() -> None:
    slices = [{"endpoints": [{"addresses": ["192.0.2.1"]}]}]
    nodes = {"probe-nobody": "192.0.2.1", "probe-gc": "192.0.2.2"}
    hosts = {name: {"status": {"hostIP": address}} for name, address in nodes.items()}
    cluster = ScriptedCluster([], objects={"endpointslices": slices, **hosts})
    found = {
        "probe-nobody": {"mlflow": "TimeoutError", "api": "reached"},
        "probe-gc": {"store": "TimeoutError", "api": "reached"},
        "probe-data": {"api": "reached"},
    }
    network.ignore_own_node(cluster, found)
    assert found == {
        "probe-nobody": {"mlflow": "TimeoutError", "api": "on its own node"},
        "probe-gc": {"store": "TimeoutError", "api": "reached"},
        "probe-data": {"api": "reached"},
    }
    unenforced = {"probe-nobody": {"mlflow": "reached", "api": "reached"}}
    network.ignore_own_node(cluster, unenforced)
    assert unenforced == {"probe-nobody": {"mlflow": "reached", "api": "reached"}}


def service(address: str, *, name: str = "kube-dns", namespace: str = "kube-system") -> Any:
    ports = [{"name": "dns", "port": 53, "targetPort": 1053}, {"name": "metrics", "port": 9153}]
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"clusterIPs": [address], "ports": ports}}


def endpoints(*addresses: str, port: int = 53, name: str = "kube-dns", namespace: str = "kube-system") -> Any:
    return {
        "metadata": {"namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
        "endpoints": [{"addresses": [address]} for address in addresses],
        "ports": [{"name": "dns", "port": port}, {"name": "metrics", "port": 9153}],
    }


def server_pod(address: str, label: str = "kube-dns", **spec: Any) -> Any:
    return {"metadata": {"labels": {"k8s-app": label}}, "spec": spec, "status": {"podIP": address}}


KUBE_DNS = [service("10.96.0.10"), service("10.96.0.1", name="kubernetes", namespace="default")]


@pytest.mark.parametrize(
    ("servers", "slices", "pods", "expected"),
    [
        # CoreDNS, and NodeLocal DNSCache as pods.
        (["10.96.0.10"], [endpoints("10.1.0.2", "10.1.0.3")], [server_pod("10.1.0.2"), server_pod("10.1.0.3")], None),
        (["10.1.0.9"], [], [server_pod("10.1.0.9", "node-local-dns")], None),
        # With other labels, on another port, on its node's address, in another namespace, outside of the cluster.
        (["10.96.0.10"], [endpoints("10.1.0.2")], [server_pod("10.1.0.2", "coredns")], ({"10.1.0.2"}, {53})),
        (["10.96.0.10"], [endpoints("10.1.0.2", port=5353)], [server_pod("10.1.0.2")], ({"10.1.0.2"}, {53, 5353})),
        (["10.96.0.10"], [endpoints("192.0.2.7")], [server_pod("192.0.2.7", hostNetwork=True)], ({"192.0.2.7"}, {53})),
        (["10.96.0.10"], [endpoints("10.1.0.4", namespace="dns")], [server_pod("10.1.0.2")], (set(), {53})),
        (["192.0.2.53", "fd00::53"], [], [server_pod("10.1.0.2")], ({"192.0.2.53", "fd00::53"}, {53})),
    ],
)
def test_other_name_servers_get_a_policy(
    servers: list[str], slices: list[Any], pods: list[Any], expected: tuple[set[str], set[int]] | None
) -> None:
    policy = names.policy_of(servers, KUBE_DNS, slices, pods, "cnn-jobs-e2e")
    if expected is None:
        assert policy is None
        return
    assert policy is not None
    for version in VERSIONS:
        kubernetes_validate.validate(policy, version, strict=True)
    (rule,) = policy["spec"]["egress"]
    blocks = {place["ipBlock"]["cidr"] for place in rule["to"]}
    assert blocks == {f"{each}/{128 if ':' in each else 32}" for each in expected[0] | set(servers)}
    assert {(each["protocol"], each["port"]) for each in rule["ports"]} == {
        (protocol, port) for protocol in ("UDP", "TCP") for port in expected[1]
    }


def test_known_name_servers_are_those_of_the_stack(built: dict[str, list[Any]]) -> None:
    (rule,) = find(built["plain"], "NetworkPolicy", "dns")["spec"]["egress"]
    known = [place["podSelector"]["matchLabels"]["k8s-app"] for place in rule["to"] if "podSelector" in place]
    assert known == list(names.KNOWN)
    assert {each["port"] for each in rule["ports"]} == {53}


def test_the_program_that_prints_name_servers() -> None:
    ran = subprocess.run([sys.executable, "-c", names.PROGRAM], capture_output=True, text=True, check=True)
    lines = [line.split() for line in Path("/etc/resolv.conf").read_text().splitlines()]
    assert ran.stdout.split() == ["servers", *[line[1] for line in lines if line[:1] == ["nameserver"]]]


def test_the_probe_program() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        there, gone = server.getsockname(), ("127.0.0.1", free_port())
        code = network.PROBE.replace("time.sleep(10)", "").replace("time.sleep(5)", "")
        words = [sys.executable, "-c", code, json.dumps({"a": there, "b": gone}), json.dumps({"c": there, "d": gone})]
        output = subprocess.run([*words, "1"], capture_output=True, text=True, check=True, timeout=60).stdout
    found = json.loads(output.partition("found ")[2])
    assert found == {"a": "reached", "b": "ConnectionRefusedError", "c": "reached", "d": "ConnectionRefusedError"}


def test_wait_repeats_failing_calls_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    cluster, answers = Cluster("nowhere", patience=1.0), iter([AssertionError("busy"), None, "there"])

    def question() -> str | None:
        answer = next(answers)
        if isinstance(answer, AssertionError):
            raise answer
        return answer

    assert cluster.wait("a pod", question, 30) == "there"
    assert "waiting for a pod (at most 30 s)" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="a pod: not within 0 s"):
        cluster.wait("a pod", lambda: None, 0)


def test_a_pod_that_cannot_start_is_hopeless() -> None:
    waiting = {"reason": "ErrImageNeverPull", "message": "not here"}
    pod = {"metadata": {"name": "x"}, "status": {"containerStatuses": [{"state": {"waiting": waiting}}]}}
    with pytest.raises(Hopeless, match="not here"):
        check_can_start(pod)
    check_can_start({"metadata": {"name": "x"}, "status": {}})


def test_parsing_of_logs_and_conditions() -> None:
    log = 'no json\n{"message": "training, at most 9 steps", "step": 3, "steps": 9}\n[1]\n{"other": 1}\n'
    (line,) = jobs.lines(log)
    assert (line["step"], line["steps"]) == (3, 9)
    failed = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy"}
    assert jobs.condition({"status": {"conditions": [{"type": "FailureTarget", "status": "True"}, failed]}}) == (
        "Failed",
        "PodFailurePolicy",
    )
    assert jobs.condition({}) == ("", "")
