"""The rendered files: every Job of the registry, with the properties that cnn-jobs relies on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cnn_jobs import __version__
from cnn_jobs.cluster.manifests import compare, differences, text_of, write_files
from cnn_jobs.cluster.plans import PROCESSES, RESNET, SEEDS, all_plans, choose, resources_of
from cnn_jobs.cluster.settings import Settings
from cnn_jobs.errors import CONTINUE, CnnJobsError, UserError
from cnn_jobs.networks.spec import ResNet18
from cnn_jobs.tasks import INTERPRETATIONS, TASKS
from tests.helpers.job_files import (
    DDP,
    DOCUMENTS,
    FOLDER,
    OBJECTS,
    PATHS,
    ROOT,
    TRAINING,
    container_of,
    env_of,
    pod_of,
)
from tests.helpers.job_rules import quantity

SEEDED = [name for name in TRAINING if name.endswith("-seeds-job.yaml")]
OTHERS = [*(f"{name}-job.yaml" for name in INTERPRETATIONS), "report-job.yaml", "prepare-data-job.yaml"]
WITH_GPU = [*TRAINING, "doctor-job.yaml"]
COMPONENTS = {"report": "report", "prepare-data": "data", "doctor": "doctor"}
GPU = "nvidia.com/gpu"


def test_there_is_a_file_for_each_job_and_no_other() -> None:
    assert set(DOCUMENTS) == {*TRAINING, *OTHERS, "doctor-job.yaml"}
    assert len(DOCUMENTS) == 2 * len(TASKS) + len(DDP) + len(INTERPRETATIONS) + 3


def test_the_files_are_as_rendered() -> None:
    assert differences(FOLDER, Settings()) == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_a_file_is_complete_in_itself(path: Path) -> None:
    job, *others = OBJECTS[path.name]
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert [each["kind"] for each in others] == (["Service", "NetworkPolicy"] if path.name in DDP else [])
    for each in OBJECTS[path.name]:
        assert f"{each['metadata']['name']}-job.yaml" == path.name
        assert each["metadata"]["namespace"] == "cnn-jobs"
        assert each["metadata"]["labels"] == job["metadata"]["labels"]


def test_jobs_have_different_names() -> None:
    made = [(job["metadata"]["namespace"], job["metadata"]["name"]) for job in DOCUMENTS.values()]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_files_are_readable(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert "do not edit" in path.read_text()
    assert max(map(len, lines)) <= 120
    assert all(line == line.rstrip() for line in lines)
    assert [line.split(":")[0] for line in lines if re.match(r"\w", line)] == [
        *["apiVersion", "kind", "metadata", "spec"] * len(OBJECTS[path.name])
    ]
    # A comment above explains each of these, including each rule.
    for field, count in (("podReplacementPolicy: ", 1), ("podFailurePolicy:", 1), ("- action: ", 3), ("resources:", 1)):
        numbers = [number for number, line in enumerate(lines) if line.strip().startswith(field)]
        assert len(numbers) == count
        assert all(lines[number - 1].strip().startswith("# ") for number in numbers)


def test_rendering_is_deterministic(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from cnn_jobs.cluster import manifests, plans, settings; "
        "manifests.write_files(plans.all_plans(), settings.Settings(), pathlib.Path(sys.argv[1]))"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": "C", "TZ": f"UTC-{seed}"}
        subprocess.run([sys.executable, "-c", script, tmp_path / seed], env=environment, cwd=ROOT, check=True)
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / seed).iterdir()} for seed in ("1", "2"))
    assert first == second == {path.name: path.read_bytes() for path in PATHS}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_images_have_a_fixed_tag(name: str) -> None:
    assert container_of(DOCUMENTS[name])["image"] == f"cnn-jobs:{__version__}" != "cnn-jobs:latest"
    assert container_of(DOCUMENTS[name])["imagePullPolicy"] == "IfNotPresent"
    assert env_of(DOCUMENTS[name])["CNN_JOBS_CONTAINER_IMAGE"] == container_of(DOCUMENTS[name])["image"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_failure_policy_matches_the_exit_codes(name: str) -> None:
    job = DOCUMENTS[name]
    never, disruption, resume = job["spec"]["podFailurePolicy"]["rules"]
    box = container_of(job)["name"]
    assert never == {
        "action": "FailIndex" if name in SEEDED else "FailJob",
        "onExitCodes": {"containerName": box, "operator": "In", "values": [UserError.exit_code]},
    }
    assert disruption == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert resume == {
        "action": "Ignore",
        "onExitCodes": {"containerName": box, "operator": "In", "values": [CONTINUE]},
    }
    assert job["spec"]["podReplacementPolicy"] == "Failed"
    assert pod_of(job)["restartPolicy"] == "Never"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_jobs_have_a_deadline_and_a_time_to_live(name: str) -> None:
    job = DOCUMENTS[name]
    assert 3600 <= job["spec"]["activeDeadlineSeconds"] <= 24 * 3600
    assert job["spec"]["ttlSecondsAfterFinished"] == 24 * 3600
    # A stop takes less than 10 s; a drain should not wait longer than half a minute.
    assert 10 < pod_of(job)["terminationGracePeriodSeconds"] <= 30
    limit = "backoffLimitPerIndex" if name in SEEDED else "backoffLimit"
    assert {each for each in job["spec"] if each.startswith("backoff")} == {limit}
    assert job["spec"][limit] == {"doctor-job.yaml": 0}.get(name, job["spec"][limit] or None)


@pytest.mark.parametrize("name", SEEDED)
def test_the_index_is_the_seed(name: str) -> None:
    spec = DOCUMENTS[name]["spec"]
    # Equal, so that seeds can be added later (elastic Indexed Jobs).
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", SEEDS, SEEDS)
    assert "maxFailedIndexes" not in spec
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert env_of(DOCUMENTS[name])["CNN_JOBS_SEED"] == index
    # Everything else equals the Job of one run.
    single = DOCUMENTS[name.replace("-seeds", "")]
    ours, theirs = container_of(DOCUMENTS[name]), container_of(single)
    assert {k: v for k, v in ours.items() if k != "env"} == {k: v for k, v in theirs.items() if k != "env"}
    assert [each for each in ours["env"] if each["name"] != "CNN_JOBS_SEED"] == theirs["env"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_labels_of_job_and_pods(name: str) -> None:
    job = DOCUMENTS[name]
    labels = dict(job["metadata"]["labels"])
    assert labels == job["spec"]["template"]["metadata"]["labels"]
    short = name.removesuffix("-job.yaml")
    task = short.removesuffix("-seeds").removesuffix("-ddp")
    training, shown = name in TRAINING, short in INTERPRETATIONS
    assert labels.pop("cnn-jobs/task", None) == (task if training or shown else None)
    assert labels == {
        "app.kubernetes.io/name": "cnn-jobs",
        "app.kubernetes.io/part-of": "cnn-jobs",
        "app.kubernetes.io/component": "training" if training else "interpret" if shown else COMPONENTS[short],
        "app.kubernetes.io/version": __version__,
    }


def test_the_pod_monitor_selects_exactly_the_training_pods() -> None:
    monitor = yaml.safe_load((FOLDER / "monitoring/podmonitor.yaml").read_text())["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    (endpoint,) = monitor["podMetricsEndpoints"]
    selected = {
        name for name, job in DOCUMENTS.items() if wanted <= job["spec"]["template"]["metadata"]["labels"].items()
    }
    serving = {
        name
        for name, job in DOCUMENTS.items()
        if endpoint["port"] in [port["name"] for port in container_of(job).get("ports", [])]
    }
    assert selected == serving == set(TRAINING)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_exactly_training_and_doctor_get_a_gpu(name: str) -> None:
    job = DOCUMENTS[name]
    resources, tolerations = container_of(job)["resources"], pod_of(job).get("tolerations", [])
    gpus = [resources[each].get(GPU, 0) for each in ("requests", "limits")]
    assert gpus == ([1, 1] if name in WITH_GPU else [0, 0])
    assert [each["key"] for each in tolerations] == ([GPU] if name in WITH_GPU else [])
    assert ("cuda" in container_of(job)["args"]) is (name in WITH_GPU)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_requests_equal_limits_and_the_disk_has_room_for_the_volumes(name: str) -> None:
    resources = container_of(DOCUMENTS[name])["resources"]
    for what in ("cpu", "memory"):
        assert resources["requests"][what] == resources["limits"][what]
    sizes = [each["emptyDir"]["sizeLimit"] for each in on_disk(DOCUMENTS[name])]
    assert quantity(resources["requests"]["ephemeral-storage"]) == sum(map(quantity, sizes))
    # docs/performance.md: the imports alone are 825 MB.
    assert quantity(resources["limits"]["memory"]) >= 2 * 825e6


def on_disk(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Volumes on the node's disk."""
    volumes = [each for each in pod_of(job)["volumes"] if "emptyDir" in each]
    return [each for each in volumes if each["emptyDir"].get("medium") != "Memory"]


@pytest.mark.parametrize("name", DDP)
def test_processes_of_a_distributed_run_reach_rank_0(name: str) -> None:
    job, service, policy = OBJECTS[name]
    spec, pod, own = job["spec"], pod_of(job), job["metadata"]["name"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", PROCESSES, PROCESSES)
    arguments = container_of(job)["args"]
    assert arguments[arguments.index("--world-size") + 1] == str(PROCESSES)
    # Rank 0 is index 0, under the name that a headless Service gives a pod with a subdomain.
    assert env_of(job)["MASTER_ADDR"] == f"{own}-0.{pod['subdomain']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    (port,) = service["spec"]["ports"]
    ports = {each["name"]: each["containerPort"] for each in container_of(job)["ports"]}
    assert ports[port["targetPort"]] == port["port"] == int(env_of(job)["MASTER_PORT"])
    pods = {"batch.kubernetes.io/job-name": own}
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == pods
    assert "has not been run yet: docs/distributed.md" in (FOLDER / name).read_text()
    # The Job succeeds exactly when rank 0 does.
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}


@pytest.mark.parametrize("name", DDP)
def test_shared_memory_is_mounted_and_counts_as_memory(name: str) -> None:
    job, single = DOCUMENTS[name], DOCUMENTS[name.replace("-ddp", "")]
    (shared,) = [each for each in pod_of(job)["volumes"] if each["name"] == "shm"]
    assert shared["emptyDir"]["medium"] == "Memory"
    assert {"name": "shm", "mountPath": "/dev/shm"} in container_of(job)["volumeMounts"]
    ours, theirs = (quantity(container_of(each)["resources"]["limits"]["memory"]) for each in (job, single))
    assert ours == theirs + quantity(shared["emptyDir"]["sizeLimit"])


def test_the_state_volume_has_room_for_cached_features() -> None:
    # docs/transfer.md: 12.0 GB for CIFAR-10, and checkpoints of 134 + 101 + 34 + 11 MB.
    assert RESNET.state_gib * 2**30 > 12.0e9 + 280e6
    assert {name for name, task in TASKS.items() if resources_of(task) is RESNET} == {
        name for name, task in TASKS.items() if isinstance(task.network, ResNet18)
    }
    (state,) = [each for each in pod_of(DOCUMENTS["task4a-job.yaml"])["volumes"] if each["name"] == "state"]
    assert state["emptyDir"]["sizeLimit"] == f"{RESNET.state_gib}Gi"


def test_pods_have_no_api_token_and_no_service_variables() -> None:
    for job in DOCUMENTS.values():
        assert pod_of(job)["automountServiceAccountToken"] is False
        assert pod_of(job)["enableServiceLinks"] is False
        assert not {"serviceAccountName", "hostNetwork", "shareProcessNamespace"} & pod_of(job).keys()


def test_only_prepare_data_can_write_the_data_volume() -> None:
    for name, job in DOCUMENTS.items():
        mounts = {each["name"]: each for each in container_of(job)["volumeMounts"]}
        assert mounts.get("data", {}).get("readOnly") is {"prepare-data-job.yaml": None, "report-job.yaml": None}.get(
            name, True
        )
        assert ("data" in mounts) is (name != "report-job.yaml")


def test_config_map_and_secrets_are_optional() -> None:
    shared = {"name": "cnn-jobs", "optional": True}
    sources = {"secretRef": {"name": "cnn-jobs-sources", "optional": True}}
    for name, job in DOCUMENTS.items():
        # Only prepare-data reads the logins for the sources of the data.
        own = [sources] if name == "prepare-data-job.yaml" else []
        assert container_of(job)["envFrom"] == [{"configMapRef": shared}, {"secretRef": shared}, *own]


def test_without_gpus_no_job_requests_one() -> None:
    for plan in all_plans():
        text = text_of(plan, Settings(gpus=0))
        assert "nvidia" not in text
        assert "cuda" not in text
        assert ("--device, cpu" in text) is (f"{plan.name}-job.yaml" in WITH_GPU)


def rendered(settings: Settings) -> dict[str, dict[str, Any]]:
    return {plan.file: next(yaml.safe_load_all(text_of(plan, settings))) for plan in all_plans()}


def test_settings_change_nothing_but_their_fields() -> None:
    image, other = "registry.example/cnn-jobs:1.2.3", Settings(image="registry.example/cnn-jobs:1.2.3", namespace="a-b")
    for name, job in rendered(other).items():
        assert container_of(job)["image"] == env_of(job)["CNN_JOBS_CONTAINER_IMAGE"] == image
        assert job["metadata"]["namespace"] == "a-b"
        text = (
            yaml.safe_dump(job)
            .replace(image, f"cnn-jobs:{__version__}")
            .replace("namespace: a-b", "namespace: cnn-jobs")
        )
        assert yaml.safe_load(text) == DOCUMENTS[name]
    for plan in all_plans():
        for each in yaml.safe_load_all(text_of(plan, other)):
            assert each["metadata"]["namespace"] == "a-b"
    for name, job in rendered(Settings(gpus=4)).items():
        assert container_of(job)["resources"]["limits"].get(GPU) == (4 if name in WITH_GPU else None)


def test_without_a_data_volume_no_job_mounts_one_and_caches_are_writable() -> None:
    settings = Settings(data_claim="")
    for plan in choose([], data_volume=False):
        job = next(yaml.safe_load_all(text_of(plan, settings)))
        assert not [each for each in pod_of(job)["volumes"] if "persistentVolumeClaim" in each]
        assert not {"CNN_JOBS_CACHE_DIR", "TORCH_HOME"} & env_of(job).keys()
        assert env_of(job)["HOME"] == "/tmp"
    assert {plan.name for plan in all_plans()} - {plan.name for plan in choose([], data_volume=False)} == {
        "prepare-data"
    }
    with pytest.raises(UserError, match="'prepare-data' is no Job"):
        choose(["prepare-data"], data_volume=False)


def test_another_data_claim_changes_nothing_else() -> None:
    for name, job in rendered(Settings(data_claim="pictures")).items():
        text = yaml.safe_dump(job).replace("claimName: pictures", "claimName: cnn-jobs-data")
        assert yaml.safe_load(text) == DOCUMENTS[name]


def test_a_state_claim_makes_only_trainings_durable() -> None:
    for name, job in rendered(Settings(state_claim="runs")).items():
        volumes = {each["name"]: each for each in pod_of(job)["volumes"]}
        if name not in TRAINING:
            assert job == DOCUMENTS[name]
            continue
        assert volumes["state"] == {"name": "state", "persistentVolumeClaim": {"claimName": "runs"}}
        assert env_of(job)["CNN_JOBS_DURABLE_STATE"] == "true"
        assert container_of(job)["resources"]["requests"]["ephemeral-storage"] == "1Gi"
    assert all("CNN_JOBS_DURABLE_STATE" not in env_of(job) for job in DOCUMENTS.values())


def test_files_are_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = all_plans()[0]
    (path,) = write_files([plan], Settings(), tmp_path / "new")
    before = path.read_text()

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(Exception, match="no space left"):
        write_files([plan], Settings(namespace="other"), tmp_path / "new")
    assert path.read_text() == before
    assert list((tmp_path / "new").iterdir()) == [path]


RENDER = "'cnn-jobs manifests render' rewrites it"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the rendered files."""
    for path in PATHS:
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_each_changed_deleted_or_added_line_is_reported(path: Path) -> None:
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    assert list(compare(text, text)) == []
    for number, line in enumerate(lines, start=1):
        before, after = lines[: number - 1], lines[number:]
        for changed in (line.replace("\n", "x\n"), " " + line, line.replace("\n", "\r\n"), f'"{line.strip()}"\n'):
            (found,) = compare("".join([*before, changed, *after]), text)
            assert found.startswith(f"line {number}: expected ")
        (deleted,) = compare("".join([*before, *after]), text)
        assert deleted.endswith(", found nothing")
        (added,) = compare("".join([*before, line, "new: 1\n", *after]), text)
        assert added == f"line {number + 1}: expected nothing, found 'new: 1'"


def test_a_block_of_another_length_is_one_difference() -> None:
    (found,) = compare("a: 1\nb: 2\nd: 4\n", "a: 1\nb: 0\nc: 3\nd: 4\n")
    assert found == "line 2: expected 'b: 0\\nc: 3', found 'b: 2'"
    (cut,) = compare("a: 1\n", "a: 1\n" + "b: 2\n" * 100)
    assert len(cut) < 150


@pytest.mark.parametrize(
    ("other", "lines"),
    [
        (lambda text: text + "\n", 1),
        (lambda text: text.rstrip("\n"), 1),
        (lambda text: "\ufeff" + text, 1),
        (lambda text: "---\n" + text, 1),
        (lambda text: f"{text}---\nkind: Secret\n", 1),
        (lambda text: text.replace("restartPolicy: Never", "restartPolicy: 'Never'"), 1),
        (lambda text: text.replace("\n", "\r\n"), len((PATHS[0].parent / "task2-job.yaml").read_text().splitlines())),
        (lambda text: "", 1),
        (lambda text: "a: [", 1),
    ],
)
def test_another_form_of_a_file_is_reported(other: object, lines: int, folder: Path) -> None:
    path = folder / "task2-job.yaml"
    path.write_bytes(other(path.read_text()).encode())  # type: ignore[operator]
    found = differences(folder, Settings())
    assert len(found) == lines
    for line in found:
        assert line.startswith(f"{path}: line ")
        assert line.endswith(f"; {RENDER}")
        assert "\n" not in line


def test_bytes_that_are_no_text_are_reported(folder: Path) -> None:
    path = folder / "task2-job.yaml"
    path.write_bytes(path.read_bytes().replace(b"backoffLimit", b"backoffLimi\xff"))
    (line,) = differences(folder, Settings())
    assert "expected 'backoffLimit: 3', found 'backoffLimi\ufffd: 3'" in line


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_missing_file_is_reported(name: str, folder: Path) -> None:
    (folder / name).unlink()
    (line,) = differences(folder, Settings())
    assert line == f"{folder / name}: missing, expected Job {name.removesuffix('-job.yaml')}; {RENDER}"


def test_a_surplus_job_file_is_reported_and_other_files_are_ignored(folder: Path) -> None:
    (folder / "task9-job.yaml").write_text((folder / "task2-job.yaml").read_text())
    (folder / "kustomization.yaml").write_text("resources: []\n")
    (line,) = differences(folder, Settings())
    assert line == f"{folder / 'task9-job.yaml'}: no Job of the registry has this file; delete it"


def test_all_differences_of_all_files_are_reported(folder: Path) -> None:
    path = folder / "task2-job.yaml"
    path.write_text(path.read_text().replace("backoffLimit: 3", "backoffLimit: 6").replace("Seconds: 30", "Seconds: 9"))
    other = folder / "task4b-job.yaml"
    other.write_text(other.read_text().replace("backoffLimit: 2", "backoffLimit: 0"))
    (folder / "report-job.yaml").unlink()
    lines = differences(folder, Settings())
    names = ["task2-job.yaml", "task2-job.yaml", "task4b-job.yaml", "report-job.yaml"]
    assert [line.split(": ")[0].rpartition("/")[2] for line in lines] == names


def test_other_settings_are_a_difference(folder: Path) -> None:
    lines = differences(folder, Settings(image="cnn-jobs:9.9.9"))
    assert len(lines) == 2 * len(DOCUMENTS)
    assert all("cnn-jobs:9.9.9', found '" in line for line in lines)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none: no such folder; .*--out"):
        differences(tmp_path / "none", Settings())


def test_an_unreadable_file_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(CnnJobsError, match=r"job.yaml: cannot be read \(Permission denied\)"):
        differences(folder, Settings())
