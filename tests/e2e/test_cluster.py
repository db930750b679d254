"""The stack and its Jobs on the cluster of KUBECONFIG: 'make e2e', docs/e2e.md.

Each test creates its own Jobs, so that it can run alone with '-k'.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e import jobs, network
from tests.e2e.conftest import CALL_REPORT
from tests.e2e.jobs import condition, small
from tests.e2e.kubectl import Cluster, Hopeless, Object, log
from tests.e2e.settings import Settings
from tests.e2e.stack import Stack
from tests.e2e.tracking import EXPERIMENT
from tests.helpers.tracking import MLFLOW_WARNING

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(0), pytest.mark.filterwarnings(MLFLOW_WARNING)]

FINAL = {
    f"{which}/{part}_{what}"
    for which in ("best", "last")
    for part in ("train", "val", "test")
    for what in ("loss", "accuracy")
}
FILES = {"checkpoints", "model", "plots", "history.csv", "confusion.csv", "mistakes.png", "network.md", "lineage.json"}
# From 'apply' to the end of a small training, including the wait for volume and image.
RUN_S = 900
INDEX = "batch.kubernetes.io/job-completion-index"


@pytest.fixture
def cluster(stack: Stack) -> Cluster:
    return stack.cluster


# For Jobs of several pods: those on other nodes would wait for a ReadWriteOnce volume.
ANYWHERE = "--no-data-volume"


def rendered(stack: Stack, folder: Path, name: str, *more: str) -> list[Object]:
    return jobs.render(stack.cluster, stack.settings, folder, name, *more)


@pytest.fixture(autouse=True)
def _delete_jobs_after_a_failure(stack: Stack, request: pytest.FixtureRequest) -> Iterator[None]:
    """A running Job would take the next test's CPU. The failure is reported before."""
    yield
    report = request.node.stash.get(CALL_REPORT, None)
    if report is not None and report.failed and not stack.is_down:
        stack.cluster.run("delete", "jobs", "--all", "--wait=false", check=False)


def task2(stack: Stack, folder: Path, name: str, *arguments: str, epochs: int = 1, **more: Any) -> Object:
    """Creates the Job of task2 under another name."""
    (job,) = rendered(stack, folder, "task2")
    job["metadata"]["name"] = name
    env = {"CNN_JOBS_EPOCHS": str(epochs), **more.pop("env", {})}
    return stack.cluster.create(small(job, arguments=arguments, env=env, **more))


def uid(thing: Object) -> str:
    return str(thing["metadata"]["uid"])


def check_whole(stack: Stack, key: str, steps: int) -> Any:
    """Checks that the run of the key is FINISHED and has every row once; returns it."""
    run = stack.tracking.run(key)
    assert run is not None
    assert (run.info.status, run.data.tags["cnn_jobs.state"]) == ("FINISHED", "finished")
    assert stack.tracking.steps(run) == list(range(1, steps + 1))
    assert set(run.data.metrics) >= FINAL
    return run


def test_task2_trains_and_everything_is_in_mlflow(stack: Stack, tmp_path: Path) -> None:
    (job,) = rendered(stack, tmp_path, "task2")
    made = stack.cluster.create(small(job, env={"CNN_JOBS_EPOCHS": "1"}))
    done = jobs.complete(stack.cluster, "task2", RUN_S)
    assert done["status"].get("failed", 0) == 0
    (pod,) = stack.cluster.pods("task2")
    begun = jobs.first_line(stack.cluster, pod["metadata"]["name"], 10)
    run = check_whole(stack, uid(made), begun["steps"])
    tags = run.data.tags
    assert tags["cnn_jobs.job_uid"] == uid(made)
    assert tags["cnn_jobs.pod"] == pod["metadata"]["name"]
    assert tags["cnn_jobs.node"] == pod["spec"]["nodeName"]
    assert (tags["cnn_jobs.attempt"], tags["cnn_jobs.synthetic_data"].lower()) == ("1", "true")
    assert run.data.params["epochs"] == "1"
    assert all(0 <= run.data.metrics[name] <= 1 for name in FINAL if name.endswith("accuracy"))
    assert stack.tracking.artifacts(run) >= FILES
    history = stack.tracking.download(run, "history.csv", tmp_path).read_text().splitlines()
    assert len(history) > begun["steps"]
    lineage = json.loads(stack.tracking.download(run, "lineage.json", tmp_path).read_text())
    assert stack.settings.image in json.dumps(lineage)
    assert stack.tracking.download(run, "checkpoints/last.pt", tmp_path).stat().st_size > 1_000_000


def check_resumed(stack: Stack, job: Object, first: str) -> None:
    """The pod after ``first`` resumes the run, and no failure is counted."""
    name = job["metadata"]["name"]
    second = jobs.next_pod(stack.cluster, name, first)
    begun = jobs.first_line(stack.cluster, second, 300)
    assert 0 < begun["step"] < begun["steps"], begun
    done = jobs.complete(stack.cluster, name, RUN_S)
    assert done["status"].get("failed", 0) == 0, done["status"]
    run = check_whole(stack, uid(job), begun["steps"])
    assert (run.data.tags["cnn_jobs.attempt"], run.data.tags["cnn_jobs.pod"]) == ("2", second)


def in_mid_run(stack: Stack, name: str, key: str) -> str:
    """Waits until MLflow has a checkpoint of the unfinished training; returns its pod."""
    pod = jobs.running_pod(stack.cluster, name, RUN_S)

    def kept() -> bool:
        if condition(stack.cluster.get("job", name))[0]:
            raise Hopeless(f"Job {name} was over before it could be disturbed: raise E2E_LONG_EPOCHS")
        return stack.tracking.kept(key)

    stack.cluster.wait(f"a checkpoint of {name} in MLflow", kept, 300)
    return pod


def evict(stack: Stack, pod: str) -> None:
    metadata = {"name": pod, "namespace": stack.settings.namespace}
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    path = f"/api/v1/namespaces/{stack.settings.namespace}/pods/{pod}/eviction"
    stack.cluster.run("create", "--raw", path, "-f", "-", given=json.dumps(eviction))


def test_a_run_evicted_in_mid_run_resumes(stack: Stack, tmp_path: Path) -> None:
    job = task2(stack, tmp_path, "evicted", epochs=stack.settings.long_epochs, backoffLimit=0)
    pod = in_mid_run(stack, "evicted", uid(job))
    evict(stack, pod)
    check_resumed(stack, job, pod)


def test_a_run_evicted_before_any_progress_is_retried(stack: Stack, tmp_path: Path) -> None:
    """It exits with 1, which would count, but Kubernetes marks the pod as disrupted."""
    # Long: a signal before the handler is installed is lost, and the pod has half a minute.
    job = task2(stack, tmp_path, "early", epochs=stack.settings.long_epochs, backoffLimit=0)
    pod = jobs.running_pod(stack.cluster, "early", RUN_S)
    evict(stack, pod)
    jobs.next_pod(stack.cluster, "early", pod)
    done = jobs.complete(stack.cluster, "early", RUN_S)
    assert done["status"].get("failed", 0) == 0, done["status"]
    assert stack.tracking.run(uid(job)).info.status == "FINISHED"


def test_a_run_with_its_pod_deleted_in_mid_run_resumes(stack: Stack, tmp_path: Path) -> None:
    job = task2(stack, tmp_path, "deleted", epochs=stack.settings.long_epochs, backoffLimit=0)
    pod = in_mid_run(stack, "deleted", uid(job))
    stack.cluster.run("delete", "pod", pod, "--wait=false")
    check_resumed(stack, job, pod)


def test_an_outage_of_mlflow_in_mid_run_loses_nothing(stack: Stack, tmp_path: Path) -> None:
    job = task2(stack, tmp_path, "outage", epochs=stack.settings.long_epochs, backoffLimit=0)
    pod = in_mid_run(stack, "outage", uid(job))
    stack.scale_mlflow(0)
    try:
        if condition(stack.cluster.get("job", "outage"))[0]:
            raise Hopeless("the run was over before MLflow was stopped: raise E2E_LONG_EPOCHS")
        enough = min(validations(stack.cluster, pod) + 2, 2 * stack.settings.long_epochs)
        stack.cluster.wait(
            "two more validations without MLflow", lambda: validations(stack.cluster, pod) >= enough, 300
        )
    finally:
        stack.scale_mlflow(1)
    done = jobs.complete(stack.cluster, "outage", RUN_S)
    assert done["status"].get("failed", 0) == 0
    run = check_whole(stack, uid(job), jobs.first_line(stack.cluster, pod, 10)["steps"])
    assert run.data.tags["cnn_jobs.attempt"] == "1"


def validations(cluster: Cluster, pod: str) -> int:
    """Number of validations in the pod's log."""
    return len(re.findall(r'"val_loss":', cluster.log(pod)))


def test_a_wrong_option_fails_at_once(stack: Stack, tmp_path: Path) -> None:
    task2(stack, tmp_path, "wrong", "--no-such-option", backoffLimit=3)
    done = jobs.over(stack.cluster, "wrong", RUN_S)
    assert condition(done) == ("Failed", "PodFailurePolicy"), done["status"]
    (pod,) = stack.cluster.pods("wrong")
    assert jobs.terminated(pod)["exitCode"] == 2
    assert "--no-such-option" in stack.cluster.log(pod["metadata"]["name"])


def test_exit_code_1_counts_and_is_retried(stack: Stack, tmp_path: Path) -> None:
    (job,) = rendered(stack, tmp_path, "report")
    # An MLflow that does not answer, which another attempt might find.
    stack.cluster.create(small(job, env={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, backoffLimit=1))
    done = jobs.over(stack.cluster, "report", RUN_S)
    try:
        assert condition(done) == ("Failed", "BackoffLimitExceeded"), done["status"]
        assert done["status"]["failed"] == 2
        assert [jobs.terminated(pod)["exitCode"] for pod in stack.cluster.pods("report")] == [1, 1]
    finally:
        stack.cluster.run("delete", "job", "report")  # the name is used by another test


def test_out_of_memory_counts(stack: Stack, tmp_path: Path) -> None:
    (job,) = rendered(stack, tmp_path, "task2")
    job["metadata"]["name"] = "hungry"
    small(job, backoffLimit=0)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    # Less than torch alone takes; requests are not above limits.
    container["resources"] = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}}
    stack.cluster.create(job)
    done = jobs.over(stack.cluster, "hungry", RUN_S)
    assert condition(done) == ("Failed", "BackoffLimitExceeded"), done["status"]
    assert done["status"]["failed"] == 1
    (pod,) = stack.cluster.pods("hungry")
    ended = jobs.terminated(pod)
    assert ended["exitCode"] == 137
    # containerd may lose the reason if the process ends before the kernel's event arrives (containerd#12260).
    assert ended["reason"] in ("OOMKilled", "Error")
    log(f"out of memory: {ended['reason']}")


def test_one_failing_seed_of_three_ends_alone(stack: Stack, tmp_path: Path) -> None:
    (job,) = rendered(stack, tmp_path, "task2-seeds", ANYWHERE)
    small(job, env={"CNN_JOBS_EPOCHS": "1"}, completions=3, parallelism=2)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    words = " ".join([*container["command"], *container["args"]])
    bad = 'if [ "$JOB_COMPLETION_INDEX" = 1 ]; then set -- --lr=nonsense; fi'
    container |= {"command": ["sh", "-c", f'{bad}; exec {words} "$@"', "seed"], "args": []}
    made = stack.cluster.create(job)
    done = jobs.over(stack.cluster, "task2-seeds", RUN_S)
    status = done["status"]
    assert condition(done) == ("Failed", "FailedIndexes"), status
    assert (status["failedIndexes"], status["completedIndexes"]) == ("1", "0,2"), status
    assert len(stack.cluster.pods("task2-seeds")) == 3
    for seed in (0, 2):
        run = stack.tracking.run(f"{uid(made)}-{seed}")
        assert (run.info.status, run.data.params["seed"]) == ("FINISHED", str(seed))
        assert run.data.tags["cnn_jobs.group"] == uid(made)
    assert stack.tracking.run(f"{uid(made)}-1") is None


def test_two_pods_train_one_run_together(stack: Stack, tmp_path: Path) -> None:
    objects = rendered(stack, tmp_path, "task2-ddp", ANYWHERE)
    (job,) = [each for each in objects if each["kind"] == "Job"]
    small(job, env={"CNN_JOBS_EPOCHS": "1"})
    # Service and NetworkPolicy first: a pod looks up its peers as soon as it runs.
    stack.cluster.apply(*[each for each in objects if each is not job])
    made = stack.cluster.create(job)
    name = job["metadata"]["name"]
    done = jobs.complete(stack.cluster, name, RUN_S)
    # Rank 0 records the run, and its success completes the Job: the other pod may be stopped while it exits.
    assert condition(done) == ("Complete", "SuccessPolicy"), done["status"]
    assert done["status"]["completedIndexes"].startswith("0")
    first = [pod for pod in stack.cluster.pods(name) if pod["metadata"]["labels"][INDEX] == "0"]
    begun = jobs.first_line(stack.cluster, first[-1]["metadata"]["name"], 10)
    run = check_whole(stack, uid(made), begun["steps"])
    assert run.data.tags["cnn_jobs.world_size"] == "2"
    # On an overloaded node one may lose the other, and both are restarted.
    log(f"two pods: attempt {run.data.tags['cnn_jobs.attempt']}")
    assert run.data.params["epochs"] == "1"
    assert stack.tracking.artifacts(run) >= FILES


def test_the_report_covers_the_runs(stack: Stack, tmp_path: Path) -> None:
    task2(stack, tmp_path, "reported")
    jobs.complete(stack.cluster, "reported", RUN_S)
    (job,) = rendered(stack, tmp_path, "report")
    stack.cluster.create(small(job))
    jobs.complete(stack.cluster, "report", RUN_S)

    def search(client: Any) -> list[Any]:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        return list(client.search_runs([experiment.experiment_id], "attributes.run_name = 'report'"))

    (run,) = stack.tracking.ask(search)
    assert run.info.status == "FINISHED"
    assert stack.tracking.artifacts(run) >= {"report.html", "report.md", "tables.csv", "report.json", "plots"}
    assert "task2" in stack.tracking.download(run, "report.md", tmp_path).read_text()


# -- submit, status, logs, cancel --------------------------------------------------------------------------------------


def ours(stack: Stack, *arguments: str, **settings: Any) -> str:
    """Runs 'cnn-jobs' on this machine, with the cluster and its MLflow."""
    env = {"MLFLOW_TRACKING_URI": stack.tracking.connect(), "COLUMNS": "200"}
    return stack.cluster.program(*arguments, "--namespace", stack.settings.namespace, **settings, **env)


def submitted(stack: Stack, *arguments: str) -> tuple[str, str]:
    """Name and UID of a submitted Job; if no node has room for its full size, of a reduced --dry-run."""
    words = ("submit", "task2", *arguments, "--gpu", "0", "--image", stack.settings.image)
    output = ours(stack, *words)
    name = re.findall(r"Job (\S+) is created", output)[0]
    job = stack.cluster.get("job", name)
    assert uid(job) in output
    assert stack.cluster.wait(f"the scheduling of {name}", lambda: place(stack, name), 120)
    if place(stack, name) == "scheduled":
        return name, uid(job)
    log("no node has room for a Job of full size: the --dry-run output is created with small requests")
    ours(stack, "cancel", name, check=False)
    stack.cluster.wait(f"the end of {name}", lambda: stack.cluster.find("job", name) is None, 120)
    printed = yaml.safe_load(ours(stack, *words, "--dry-run"))
    made = stack.cluster.create(small(printed))
    return made["metadata"]["name"], uid(made)


def place(stack: Stack, name: str) -> str:
    """``scheduled``, ``no room``, or "" while undecided."""
    for pod in stack.cluster.pods(name):
        conditions = {each["type"]: each for each in pod["status"].get("conditions", [])}
        found = conditions.get("PodScheduled", {})
        if found.get("status") == "True":
            return "scheduled"
        if found.get("reason") == "Unschedulable":
            return "no room"
    return ""


def test_submit_status_and_logs_show_a_run_to_its_end(stack: Stack) -> None:
    name, key = submitted(stack, "--set", "epochs=1", "--seed", "7")
    shown = ours(stack, "logs", name, "-f", timeout_s=RUN_S)
    assert "training, at most" in shown
    jobs.complete(stack.cluster, name, 60)
    run = stack.tracking.run(key)
    assert (run.info.status, run.data.params["seed"]) == ("FINISHED", "7")
    shown = ours(stack, "status", name)
    assert name in shown
    assert "FINISHED" in shown.upper()


def test_cancel_ends_a_run_for_good(stack: Stack) -> None:
    # A Job of full size may be faster.
    name, key = submitted(stack, "--set", f"epochs={4 * stack.settings.long_epochs}")
    in_mid_run(stack, name, key)
    ours(stack, "cancel", name)
    stack.cluster.wait(f"the end of {name}", lambda: stack.cluster.find("job", name) is None, 120)
    stack.cluster.wait("the run's end", lambda: stack.tracking.run(key).info.status != "RUNNING", 60)
    run = stack.tracking.run(key)
    assert (run.info.status, run.data.tags["cnn_jobs.state"]) == ("KILLED", "cancelled")
    assert "checkpoints/last.pt" in stack.tracking.artifacts(run, "checkpoints")


# -- around the runs ---------------------------------------------------------------------------------------------------


def test_housekeeping_runs(stack: Stack) -> None:
    for name in ("cnn-jobs-reap", "mlflow-gc"):
        words = ("create", "job", f"once-{name}", f"--from=cronjob/{name}", "--dry-run=client", "-o", "json")
        job = json.loads(stack.cluster.run(*words).stdout)
        # Under policies a new pod may have no network for some seconds; the CronJob would simply run again.
        job["spec"]["backoffLimit"] = 2
        stack.cluster.create(job)
    for name in ("cnn-jobs-reap", "mlflow-gc"):
        jobs.complete(stack.cluster, f"once-{name}", RUN_S)


def addresses(stack: Stack, settings: Settings) -> network.Places:
    """By IP address, independent of the cluster's DNS."""
    cluster = stack.cluster
    api = cluster.get("service", "kubernetes", "--namespace=default")["spec"]["clusterIP"]
    places: network.Places = {
        "mlflow": (cluster.get("service", "mlflow")["spec"]["clusterIP"], 5000),
        "api": (api, 443),
    }
    if not settings.own_database:
        places["postgres"] = (cluster.get("pod", "postgres-0")["status"]["podIP"], 5432)
    if settings.store_in_cluster:
        places["store"] = (cluster.get("service", "store")["spec"]["clusterIP"], 8333)
    return places


def test_pods_reach_exactly_what_they_may(stack: Stack, settings: Settings) -> None:
    places = addresses(stack, settings)
    inner = {name: place for name, place in places.items() if name != "mlflow"}
    one = {name: {name: place} for name, place in places.items()}
    pods = [
        network.probe(settings, "probe-nobody", "", {}, places),
        network.probe(settings, "probe-training", "training", one["mlflow"] | {"name": ("mlflow", 5000)}, inner),
        # The addresses that training pods must not reach do answer pods that may.
        network.probe(settings, "probe-data", "data", {**one["mlflow"], **one["api"]}, {}),
    ]
    behind = {name: place for name, place in inner.items() if name in ("postgres", "store")}
    if behind:
        # External S3 may be anywhere on port 443: only with the overlay's store MLflow reaches nothing else.
        other = one["api"] if "store" in places else {}
        pods.append(network.probe(settings, "probe-server", "mlflow", behind, other))
    if "postgres" in places:
        pods.append(network.probe(settings, "probe-gc", "mlflow-gc", one["postgres"], one.get("store", {})))
    found = network.answers(stack.cluster, *pods)
    log(json.dumps(found))
    network.ignore_own_node(stack.cluster, found)
    if set(found["probe-nobody"].values()) == {"reached"}:
        why = f"the network plugin enforces no policy: a pod that may reach nothing reached {found['probe-nobody']}"
        assert not settings.require_network_policy, why
        pytest.skip(why)
    assert "reached" not in found["probe-nobody"].values(), found
    assert {name for name, answer in found["probe-training"].items() if answer == "reached"} == {"mlflow", "name"}, (
        found
    )
    assert set(found["probe-data"].values()) == {"reached"}, found
    for name, allowed in (("probe-server", set(behind)), ("probe-gc", {"postgres"})):
        if name in found:
            assert {place for place, answer in found[name].items() if answer == "reached"} == allowed, found


def test_deletion_leaves_nothing(stack: Stack) -> None:
    assert stack.cluster.list("persistentvolumeclaims")
    had_volumes = stack.volumes()
    stack.down()
    assert stack.cluster.find("namespace", stack.settings.namespace) is None
    stack.cluster.wait(f"the end of the volumes {had_volumes}", lambda: not stack.volumes(), 300)
    assert stack.cluster_wide() <= stack.cluster_wide_before
