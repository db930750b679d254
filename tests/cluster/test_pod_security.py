"""Pod Security 'restricted' admits every pod of a Job; violations of each of its rules are detected."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers.job_files import DOCUMENTS, container_of, pod_of
from tests.helpers.pod_security import SYSCTLS, VOLUMES, violations

Change = Callable[[dict[str, Any]], object]


def on_pod(**fields: Any) -> Change:
    return lambda spec: spec.update(fields)


def on_pod_context(**fields: Any) -> Change:
    return lambda spec: spec["securityContext"].update(fields)


def on_container(**fields: Any) -> Change:
    return lambda spec: spec["containers"][0].update(fields)


def on_context(**fields: Any) -> Change:
    return lambda spec: spec["containers"][0]["securityContext"].update(fields)


def without(name: str, *, of_pod: bool = False) -> Change:
    return lambda spec: (spec if of_pod else spec["containers"][0])["securityContext"].pop(name)


REFUSED: dict[str, tuple[Change, str]] = {
    "host network": (on_pod(hostNetwork=True), "hostNetwork"),
    "host PIDs": (on_pod(hostPID=True), "hostPID"),
    "host IPC": (on_pod(hostIPC=True), "hostIPC"),
    "host process, pod": (on_pod_context(windowsOptions={"hostProcess": True}), "hostProcess"),
    "host process": (on_context(windowsOptions={"hostProcess": True}), "train: hostProcess"),
    "privileged": (on_context(privileged=True), "train: privileged"),
    "host port": (on_container(ports=[{"containerPort": 1, "hostPort": 1}]), "train: hostPort"),
    "AppArmor": (on_context(appArmorProfile={"type": "Unconfined"}), "train: appArmorProfile"),
    "AppArmor, pod": (on_pod_context(appArmorProfile={"type": "Unconfined"}), "appArmorProfile"),
    "SELinux type": (on_pod_context(seLinuxOptions={"type": "spc_t"}), "seLinuxOptions"),
    "SELinux user": (on_context(seLinuxOptions={"user": "root"}), "train: seLinuxOptions"),
    "SELinux role": (on_context(seLinuxOptions={"role": "x"}), "train: seLinuxOptions"),
    "/proc": (on_context(procMount="Unmasked"), "train: procMount"),
    "sysctl": (on_pod_context(sysctls=[{"name": "kernel.msgmax", "value": "1"}]), "sysctl kernel.msgmax"),
    "probe": (on_container(livenessProbe={"httpGet": {"host": "1.2.3.4"}}), "train: host of a probe or hook"),
    "hook": (on_container(lifecycle={"preStop": {"tcpSocket": {"host": "x"}}}), "train: host of a probe or hook"),
    "host path": (on_pod(volumes=[{"name": "x", "hostPath": {"path": "/"}}]), "volume hostPath"),
    "NFS": (on_pod(volumes=[{"name": "x", "nfs": {}}]), "volume nfs"),
    "image volume": (on_pod(volumes=[{"name": "x", "image": {}}]), "volume image"),
    "escalation": (on_context(allowPrivilegeEscalation=True), "train: allowPrivilegeEscalation"),
    "escalation not denied": (without("allowPrivilegeEscalation"), "train: allowPrivilegeEscalation"),
    "root allowed": (without("runAsNonRoot", of_pod=True), "train: runAsNonRoot is not set"),
    "root allowed, container": (on_context(runAsNonRoot=False), "train: runAsNonRoot"),
    "root, pod": (on_pod_context(runAsUser=0), "runAsUser"),
    "root": (on_context(runAsUser=0), "train: runAsUser"),
    "no seccomp": (without("seccompProfile", of_pod=True), "train: seccompProfile is not set"),
    "seccomp": (on_context(seccompProfile={"type": "Unconfined"}), "train: seccompProfile"),
    "seccomp, pod": (on_pod_context(seccompProfile={"type": "Unconfined"}), "seccompProfile"),
    "capabilities kept": (on_context(capabilities={"drop": ["NET_RAW"]}), "train: capabilities.drop"),
    "capability": (on_context(capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]}), "train: capabilities.add"),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_pods_are_admitted(name: str) -> None:
    assert violations(DOCUMENTS[name]["spec"]["template"]) == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_pods_are_stricter_than_restricted_requires(name: str) -> None:
    pod, container = pod_of(DOCUMENTS[name]), container_of(DOCUMENTS[name])
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    # Numeric and not root: user, group and the group of volumes.
    assert [pod["securityContext"][each] for each in ("runAsUser", "runAsGroup", "fsGroup")] == [10001] * 3
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("what", REFUSED)
def test_each_violation_is_detected(what: str) -> None:
    template = copy.deepcopy(DOCUMENTS["task2-job.yaml"]["spec"]["template"])
    change, expected = REFUSED[what]
    change(template["spec"])
    assert expected in violations(template)


def test_violations_in_init_and_ephemeral_containers_are_detected() -> None:
    template = copy.deepcopy(DOCUMENTS["task2-job.yaml"]["spec"]["template"])
    bad = {"name": "bad", "securityContext": {"privileged": True}}
    for kind in ("initContainers", "ephemeralContainers"):
        template["spec"][kind] = [bad]
        assert "bad: privileged" in violations(template)
        del template["spec"][kind]
    assert violations(template) == []


def test_the_apparmor_annotation_is_checked() -> None:
    template = copy.deepcopy(DOCUMENTS["task2-job.yaml"]["spec"]["template"])
    name = "container.apparmor.security.beta.kubernetes.io/train"
    for value, found in {"runtime/default": [], "localhost/x": [], "unconfined": ["AppArmor annotation"]}.items():
        template["metadata"]["annotations"] = {name: value}
        assert violations(template) == found


def test_allowed_fields_are_not_reported() -> None:
    template = copy.deepcopy(DOCUMENTS["task2-job.yaml"]["spec"]["template"])
    spec = template["spec"]
    spec["volumes"] = [{"name": kind.lower(), kind: {}} for kind in VOLUMES]
    spec["securityContext"]["sysctls"] = [{"name": name, "value": "1"} for name in SYSCTLS]
    spec["containers"][0]["securityContext"]["capabilities"]["add"] = ["NET_BIND_SERVICE"]
    spec["containers"][0]["readinessProbe"] = {"httpGet": {"path": "/", "port": 1}}
    assert violations(template) == []
