"""``cnn-jobs submit``: the Jobs it creates, and what it refuses before it contacts a cluster."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cnn_jobs.cli.submit import DECIDED, command_of
from cnn_jobs.cluster.jobs import ALPHABET, LONGEST_NAME
from cnn_jobs.cluster.plans import all_plans
from cnn_jobs.recipe import FIELD_NAMES, pick, plan
from cnn_jobs.tasks import get_task
from tests.helpers.calls import Called, call
from tests.helpers.job_files import (
    DOCUMENTS,
    ROOT,
    VERSIONS,
    container_of,
    context_of,
    env_of,
    in_the_pod,
    pod_of,
)
from tests.helpers.job_rules import refusals
from tests.helpers.kubernetes_api import FakeApi
from tests.helpers.kustomize import kubectl

GRID = ("--sweep", "lr=1e-3,1e-4", "--sweep", "batch_size=32,64", "--seeds", "0,3")
SUBMITS: dict[str, tuple[str, ...]] = {
    "one run": ("task2",),
    "with options": ("task2", "--set", "epochs=3", "--set", "fast=true", "--set", "data=shapes", "--seed", "4"),
    "on CPUs, with a state volume": ("task3e", "--gpu", "0", "--state-volume", "runs"),
    "seeds": ("task2", "--seeds", "0-4"),
    "some seeds": ("task2", "--seeds", "3,5-6"),
    "one seed": ("task2", "--seeds", "3"),
    "a grid": ("task2", *GRID),
    "in a queue": ("task4a", "--queue", "cnn-jobs"),
    "elsewhere": ("task2", "--image", "registry.example/x:2", "--namespace", "team-a"),
    "without a data volume": ("task2", "--no-data-volume", "--set", "data=shapes"),
    "on another data volume": ("task2", "--data-claim", "pictures"),
    "a file of seeds": ("task2-seeds",),
    "a report": ("report", "--set", "experiment=autumn"),
    "the data": ("prepare-data",),
    "pictures": ("task4b",),
    "a doctor": ("doctor", "--gpu", "0"),
}


def submit(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Called:
    return call(monkeypatch, "submit", *arguments)


def dry(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")  # no cluster is contacted
    done = submit(monkeypatch, *arguments, "--dry-run")
    assert (done.code, done.stderr) == (0, "")
    (job,) = yaml.safe_load_all(done.stdout)
    assert isinstance(job, dict)
    return job


def with_text(job: dict[str, Any]) -> dict[str, Any]:
    """Quantities as the API server returns them."""
    for amounts in container_of(job)["resources"].values():
        amounts.update({name: str(amount) for name, amount in amounts.items()})
    return job


@pytest.mark.parametrize("which", SUBMITS)
def test_a_dry_run_is_a_valid_job(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = dry(monkeypatch, *SUBMITS[which])
    assert refusals(job) == []
    for version in VERSIONS:
        kubernetes_validate.validate(job, version, strict=True)
    context_of(job)


def test_kubectl_accepts_a_dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    # In a process of its own, whose output is redacted.
    arguments = ["submit", "task2", *GRID, "--queue", "q", "--dry-run"]
    dry_run = [sys.executable, "-m", "cnn_jobs", *arguments]
    text = subprocess.run(dry_run, capture_output=True, text=True, check=True).stdout
    (job,) = yaml.safe_load_all(text)
    assert job["spec"] == dry(monkeypatch, *arguments[1:-1])["spec"]
    assert job["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    done = kubectl("label", "--local", "-f", "-", "a=b", "-o", "name", given=text)
    assert re.fullmatch(r"job.batch/task2-\w{5}\n?(job.batch/task2-\w{5} labeled\n?)?", done), done


def test_one_run_is_the_rendered_file_under_a_new_name(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = dry(monkeypatch, "task2"), dry(monkeypatch, "task2")
    names = [each["metadata"].pop("name") for each in (first, second)]
    assert len(set(names)) == 2
    assert all(re.fullmatch(f"task2-[{ALPHABET}]{{5}}", name) for name in names)
    expected = DOCUMENTS["task2-job.yaml"]
    assert first == second == {**expected, "metadata": {k: v for k, v in expected["metadata"].items() if k != "name"}}


def test_names_leave_room_for_the_names_of_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in all_plans():
        if each.name.endswith("-ddp"):
            continue
        name = dry(monkeypatch, each.name)["metadata"]["name"]
        assert len(name) <= LONGEST_NAME
        assert len(f"{name}-9999-x7k2p") <= 63


@pytest.mark.parametrize("name", ["task2-ddp", "task4a-ddp"])
def test_distributed_jobs_are_left_to_kubectl(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = submit(monkeypatch, name, "--dry-run")
    assert (done.code, done.stdout) == (2, "")
    assert done.error.endswith(f"which 'submit' does not create; use kubectl apply -f k8s/{name}-job.yaml")


def test_options_reach_the_pods_command(monkeypatch: pytest.MonkeyPatch) -> None:
    job = dry(monkeypatch, *SUBMITS["with options"], "--set", "checkpoint_every=30", "--set", "run-name=a b")
    params = context_of(job).params
    assert (params["epochs"], params["fast"], params["data"], params["seed"]) == (3, True, "shapes", 4)
    assert (params["checkpoint_every"], params["run_name"], params["device"]) == (30.0, "a b", "cuda")
    off = context_of(dry(monkeypatch, "task2", "--set", "fast=false")).params
    assert off["fast"] is False


def test_seeds_from_0_equal_the_seeds_file(monkeypatch: pytest.MonkeyPatch) -> None:
    job, expected = dry(monkeypatch, "task2", "--seeds", "0-4"), DOCUMENTS["task2-seeds-job.yaml"]
    assert job["spec"] == expected["spec"]


@pytest.mark.parametrize("which", ["a grid", "some seeds"])
def test_each_index_trains_a_run_that_train_plans(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, *arguments = SUBMITS[which]
    job = dry(monkeypatch, task, *arguments)
    train = command_of(("train", "task2"))
    with train.make_context("train", [task, *arguments]) as context:
        planned = plan(get_task(task).recipe, context.params["seeds"], context.params["sweep"])
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == len(planned)
    assert len({each.recipe for each in planned}) == len(planned)
    in_the_pod(job, monkeypatch)
    for index, expected in enumerate(planned):
        monkeypatch.setenv("CNN_JOBS_POINT", str(index))
        params = context_of(job).params
        recipe = pick(plan(get_task(task).recipe, params["seeds"], params["sweep"]), params["point"])
        assert recipe == expected
    env = {each["name"]: each for each in container_of(job)["env"]}
    path = env["CNN_JOBS_POINT"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def test_one_seed_is_a_plain_job(monkeypatch: pytest.MonkeyPatch) -> None:
    job = dry(monkeypatch, "task2", "--seeds", "3")
    assert "completionMode" not in job["spec"]
    assert "CNN_JOBS_POINT" not in env_of(job)
    assert context_of(job).params["seeds"] == "3"


def test_a_queue_is_a_label_on_a_suspended_job(monkeypatch: pytest.MonkeyPatch) -> None:
    job = dry(monkeypatch, "task2", "--queue", "night")
    assert (job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], job["spec"]["suspend"]) == ("night", True)
    assert "kueue.x-k8s.io/queue-name" not in job["spec"]["template"]["metadata"]["labels"]
    assert "suspend" not in dry(monkeypatch, "task2")["spec"]


def test_gpu_and_state_volume_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    job = dry(monkeypatch, "task2", "--gpu", "0", "--state-volume", "runs")
    volumes = {each["name"]: each for each in pod_of(job)["volumes"]}
    assert volumes["state"]["persistentVolumeClaim"] == {"claimName": "runs"}
    assert "nvidia.com/gpu" not in container_of(job)["resources"]["limits"]
    assert context_of(job).params["device"] == "cpu"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("task9",), "'task9' is no Job; the Jobs are prepare-data, doctor, task2, "),
        (("task2", "--set", "epoch=3"), "--set is 'epoch=3', but must be FIELD=VALUE with a field of augmentation, "),
        (("task2", "--set", "epochs"), "--set is 'epochs', but must be FIELD=VALUE"),
        (("task2", "--set", "epochs=x"), "--set epochs=x: 'x' is not a valid integer"),
        (("task2", "--set", "optimizer=x"), "--set optimizer=x: 'x' is not one of 'sgd', 'adam'"),
        (("task2", "--set", "epochs=0"), "epochs is 0, but must be at least 1"),
        (("task2", "--set", "lr=1", "--set", "lr=2"), "--set names lr twice"),
        (("task2", "--set", "device=cpu"), "--set device=cpu: device cannot be set here, --gpu decides it"),
        (("task2", "--sweep", "lr=0,1"), "lr is 0.0, but must be a finite number above 0"),
        (("task2", "--sweep", "speed=1"), "--sweep is 'speed=1', but must be FIELD=VALUE,..."),
        (("task2", "--seed", "1", "--seeds", "0-4"), "--seed and --seeds (or --sweep seed=...) set the same"),
        (("task2", "--seeds", "4-0"), "--seeds is '4-0'"),
        (("task2", "--seeds", "0-20000"), "--seeds and --sweep give 20001 runs, but a Job has at most 10000"),
        (("report", "--seed", "1"), "--seed, --seeds and --sweep are for a task; 'report' is no training"),
        (("task2-seeds", "--seeds", "0-9"), "--seed, --seeds and --sweep are for a task; 'task2-seeds' is 5 seeds"),
        (("task2-seeds", "--set", "seed=3"), "--set seed: in 'task2-seeds' the seed is the pod's index"),
        (("task2", "--image", "x"), "--image is 'x', which has no tag"),
        (("task2", "--namespace", "A"), "--namespace is 'A'"),
        (("task2", "--state-volume", "A"), "--state-volume is 'A'"),
        (("task2", "--queue", "A b"), "--queue is 'A b'"),
    ],
)
def test_invalid_requests_are_refused_before_a_cluster_is_contacted(
    arguments: tuple[str, ...], message: str, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    for more in ((), ("--dry-run",)):
        done = submit(monkeypatch, *arguments, *more)
        assert (done.code, done.stdout) == (2, "")
        assert done.error.startswith(f"error: {message}")
    assert api.calls == []


def test_each_option_of_train_can_be_set_or_is_refused_with_a_reason() -> None:
    params = {each.name for each in command_of(("train", "task2")).params} - {"task"}
    assert set(FIELD_NAMES) <= params
    assert {name for name in DECIDED if name in params} == params & set(DECIDED)
    assert params - set(DECIDED) >= {"data", "experiment", "run_name", "checkpoint_every", "threads", "trunk_cache"}


def test_the_created_job_equals_the_dry_run(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    done = submit(monkeypatch, "task2", "--set", "epochs=3")
    assert (done.code, done.stderr) == (0, "")
    ((name, job),) = api.jobs.items()
    assert done.stdout.splitlines() == [
        f"Job {name} is created in namespace cnn-jobs",
        f"Run key {job['metadata']['uid']}",
        f"  cnn-jobs status {name}",
        f"  cnn-jobs logs -f {name}",
        f"  cnn-jobs cancel {name}",
    ]
    shown = dry(monkeypatch, "task2", "--set", "epochs=3")
    sent = {**job, "spec": {k: v for k, v in job["spec"].items() if k != "selector"}}
    assert sent["spec"] == with_text(shown)["spec"]
    assert sent["metadata"]["labels"] == shown["metadata"]["labels"]


@pytest.mark.parametrize("which", [each for each in SUBMITS if each not in ("elsewhere", "in a queue")])
def test_the_client_sends_the_job_unchanged(which: str, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    assert submit(monkeypatch, *SUBMITS[which]).code == 0
    (job,) = api.jobs.values()
    del job["spec"]["selector"]
    assert job["spec"] == with_text(dry(monkeypatch, *SUBMITS[which]))["spec"]


def test_a_grid_prints_a_key_per_run(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = submit(monkeypatch, "task2", "--sweep", "lr=1e-3,1e-4", "--context", "here").stdout.splitlines()
    ((name, job),) = api.jobs.items()
    uid = job["metadata"]["uid"]
    assert lines[1:3] == [f"Run key {uid}-0  lr0.001", f"Run key {uid}-1  lr0.0001"]
    assert lines[3] == f"  cnn-jobs status {name} --context here"


def test_a_job_without_runs_prints_no_key(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Run key" not in submit(monkeypatch, "report").stdout


def test_a_taken_name_is_retried_with_another(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.fail("POST", "/jobs", 409, 'jobs.batch "task2-x" already exists', "AlreadyExists", times=2)
    assert submit(monkeypatch, "task2").code == 0
    api.fail("POST", "/jobs", 409, 'jobs.batch "task2-x" already exists', "AlreadyExists", times=3)
    done = submit(monkeypatch, "task2")
    assert done.code == 1
    assert "already exists" in done.error


@pytest.mark.parametrize(
    ("major", "minor", "version", "code"),
    [
        ("1", "20", "v1.20.15", 2),
        ("1", "30+", "v1.30.9-eks-1a2b3c4", 2),
        ("1", "31+", "v1.31.1-gke.1146000", 0),
        ("1", "36", "v1.36.0+k3s1", 0),
        ("1", "100", "v1.100.0", 0),
        # Custom builds: without numbers, with gitVersion only, with text in place of numbers.
        ("0", "0", "v0.0.0-master+$Format:%H$", 0),
        ("", "", "v1.36.0", 0),
        ("", "", "v1.30.0", 2),
        ("", "", "development", 0),
    ],
)
def test_a_cluster_that_silently_drops_fields_is_refused(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch, major: str, minor: str, version: str, code: int
) -> None:
    api.version = {"major": major, "minor": minor, "gitVersion": version}
    done = submit(monkeypatch, "task2")
    assert (done.code, len(api.jobs)) == (code, code == 0), done.error
    if code:
        assert f"the cluster is Kubernetes {version[1:5]}, which drops" in done.error


def test_a_queue_requires_kueue(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    done = submit(monkeypatch, "task2", "--queue", "q")
    assert (done.code, api.jobs) == (2, {})
    assert done.error.startswith("error: --queue: this cluster has no Kueue")
    api.groups.append("kueue.x-k8s.io")
    assert submit(monkeypatch, "task2", "--queue", "q").code == 0
    (job,) = api.jobs.values()
    assert (job["spec"]["suspend"], job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]) == (True, "q")


def test_a_dry_run_imports_nothing_heavy() -> None:
    script = (
        "import sys; from cnn_jobs.cli.submit import submit\n"
        "submit(['task2', '--dry-run'], standalone_mode=False)\n"
        "print(sorted({'torch', 'mlflow', 'kubernetes', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
