"""The files are valid by the schemas of each Kubernetes version, and by the API server's further rules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cnn_jobs.cluster.manifests import text_of
from cnn_jobs.cluster.plans import all_plans
from cnn_jobs.cluster.settings import Settings
from tests.helpers.job_files import DOCUMENTS, PATHS, VERSIONS
from tests.helpers.job_rules import refusals

OTHER_SETTINGS = {
    "on CPUs": Settings(gpus=0),
    "elsewhere": Settings(image="registry.example:5000/team/cnn-jobs:0.1.0-cuda", namespace="team-a", gpus=2),
    "durable state": Settings(state_claim="runs"),
    "no data volume": Settings(data_claim=""),
}


def rendered(settings: Settings) -> list[dict[str, Any]]:
    return [each for plan in all_plans() for each in yaml.safe_load_all(text_of(plan, settings))]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_files_are_valid_by_the_strict_schemas(path: Any, version: str) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_detect_errors(version: str) -> None:
    for change in (
        lambda job: job["spec"].update(backoffLimits=3),
        lambda job: job["spec"].update(backoffLimit="3"),
        lambda job: job["spec"]["template"]["spec"]["containers"][0]["env"][0].update(value=1),
        lambda job: job["spec"]["podFailurePolicy"]["rules"][0].pop("action"),
        lambda job: job["spec"]["template"]["spec"].update(enableServiceLink=False),
    ):
        document = copy.deepcopy(DOCUMENTS["task2-job.yaml"])
        change(document)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_satisfy_the_rules_of_the_api_server(name: str) -> None:
    assert refusals(DOCUMENTS[name]) == []


@pytest.mark.parametrize("which", OTHER_SETTINGS)
def test_files_rendered_with_other_settings_are_valid(which: str) -> None:
    for document in rendered(OTHER_SETTINGS[which]):
        if document["kind"] == "Job":
            assert refusals(document) == []
        for version in (VERSIONS[0], VERSIONS[-1]):
            kubernetes_validate.validate(document, version, strict=True)


Change = Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], object]
# Arguments: the Job's spec, the pod's spec, the container.
REFUSED: dict[str, Change] = {
    "FailIndex without backoffLimitPerIndex": lambda job, pod, box: job["podFailurePolicy"]["rules"][0].update(
        action="FailIndex"
    ),
    "action": lambda job, pod, box: job["podFailurePolicy"]["rules"][0].update(action="Retry"),
    "backoffLimitPerIndex without indexes": lambda job, pod, box: job.update(backoffLimitPerIndex=1),
    "maxFailedIndexes without backoffLimitPerIndex": lambda job, pod, box: job.update(maxFailedIndexes=1),
    "successPolicy without indexes": lambda job, pod, box: job.update(
        successPolicy={"rules": [{"succeededIndexes": "0"}]}
    ),
    "an Indexed Job without completions or parallelism": lambda job, pod, box: job.update(completionMode="Indexed"),
    "backoffLimit": lambda job, pod, box: job.update(backoffLimit=-1),
    "activeDeadlineSeconds": lambda job, pod, box: job.update(activeDeadlineSeconds=0),
    "podFailurePolicy without restartPolicy Never": lambda job, pod, box: pod.update(restartPolicy="OnFailure"),
    "restartPolicy": lambda job, pod, box: pod.update(restartPolicy="Always"),
    "podFailurePolicy with another podReplacementPolicy than Failed": lambda job, pod, box: job.update(
        podReplacementPolicy="TerminatingOrFailed"
    ),
    "containerName": lambda job, pod, box: box.update(name="other"),
    "exit codes must be there, in order and different": lambda job, pod, box: job["podFailurePolicy"]["rules"][0][
        "onExitCodes"
    ].update(values=[3, 2]),
    "exit code 0 is no failure": lambda job, pod, box: job["podFailurePolicy"]["rules"][0]["onExitCodes"].update(
        values=[0, 2]
    ),
    "operator": lambda job, pod, box: job["podFailurePolicy"]["rules"][0]["onExitCodes"].update(operator="Is"),
    "a rule must have either exit codes or conditions": lambda job, pod, box: job["podFailurePolicy"]["rules"][
        0
    ].update(onPodConditions=[{"type": "DisruptionTarget"}]),
    "value of label cnn-jobs/task": lambda job, pod, box: job["template"]["metadata"]["labels"].update(
        {"cnn-jobs/task": "task 2"}
    ),
    "prefix of label Cnn_Jobs/x": lambda job, pod, box: job["template"]["metadata"]["labels"].update(
        {"Cnn_Jobs/x": ""}
    ),
    "label cnn-jobs/": lambda job, pod, box: job["template"]["metadata"]["labels"].update({"cnn-jobs/": ""}),
    "names of volumes": lambda job, pod, box: pod["volumes"].append({"name": "tmp", "emptyDir": {}}),
    "a mount without a volume": lambda job, pod, box: pod["volumes"].pop(),
    "a path is mounted twice": lambda job, pod, box: box["volumeMounts"].append({"name": "tmp", "mountPath": "/tmp"}),
    "port Metrics": lambda job, pod, box: box["ports"][0].update(name="Metrics"),
    "port sixteen-letters0": lambda job, pod, box: box["ports"][0].update(name="sixteen-letters0"),
    "name of a container": lambda job, pod, box: box.update(name="Train"),
    "a variable twice": lambda job, pod, box: box["env"].append({"name": "HOME", "value": "/"}),
    "name of variable 1X": lambda job, pod, box: box["env"].append({"name": "1X", "value": ""}),
    "X must have either a value or a source": lambda job, pod, box: box["env"].append({"name": "X"}),
    "field metadata.nam": lambda job, pod, box: box["env"].append(
        {"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "metadata.nam"}}}
    ),
    "request of memory above its limit": lambda job, pod, box: box["resources"]["requests"].update(memory="9Gi"),
    "request of nvidia.com/gpu is not its limit": lambda job, pod, box: box["resources"]["requests"].update(
        {"nvidia.com/gpu": 0}
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_each_violation_is_detected(why: str) -> None:
    job = copy.deepcopy(DOCUMENTS["task2-job.yaml"])
    pod = job["spec"]["template"]["spec"]
    REFUSED[why](job["spec"], pod, pod["containers"][0])
    assert why in refusals(job)


@pytest.mark.parametrize("name", ["Task2", "task_2", "-task", "t" * 64])
def test_an_invalid_name_is_detected(name: str) -> None:
    job = copy.deepcopy(DOCUMENTS["task2-job.yaml"])
    job["metadata"]["name"] = name
    assert refusals(job) == ["metadata.name"]


def test_a_name_without_room_for_an_index_is_detected() -> None:
    job = copy.deepcopy(DOCUMENTS["task2-seeds-job.yaml"])
    job["metadata"]["name"] = "t" * 62
    assert refusals(job) == ["the host name of the last index is too long"]
