"""Pod Security Standard 'restricted', as a function: https://kubernetes.io/docs/concepts/security/pod-security-standards/

Every rule of 'baseline' and 'restricted' for Linux, and none of the exceptions for user namespaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
SECCOMP = {"RuntimeDefault", "Localhost"}
APPARMOR = SECCOMP
APPARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"
KINDS = ("containers", "initContainers", "ephemeralContainers")


def violations(template: dict[str, Any]) -> list[str]:
    """Fields of a pod (``metadata`` and ``spec``) that 'restricted' does not allow; none if it is admitted."""
    spec = template["spec"]
    found = [*_of_pod(spec), *_of_annotations(template.get("metadata", {}).get("annotations", {}))]
    for kind in KINDS:
        for container in spec.get(kind, []):
            found += [f"{container['name']}: {each}" for each in _of_container(container, spec)]
    return found


def _of_annotations(annotations: dict[str, str]) -> Iterator[str]:
    for name, value in annotations.items():
        if name.startswith(APPARMOR_ANNOTATION) and not (value == "runtime/default" or value.startswith("localhost/")):
            yield "AppArmor annotation"


def _of_pod(spec: dict[str, Any]) -> Iterator[str]:
    yield from (name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name))
    for volume in spec.get("volumes", []):
        yield from (f"volume {kind}" for kind in volume.keys() - {"name"} - VOLUMES)
    context = spec.get("securityContext", {})
    yield from (f"sysctl {each['name']}" for each in context.get("sysctls", []) if each["name"] not in SYSCTLS)
    yield from _of_context(context)


def _of_context(context: dict[str, Any]) -> Iterator[str]:
    """Rules for pod and container alike."""
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield "hostProcess"
    selinux = context.get("seLinuxOptions", {})
    if selinux.get("type", "") not in SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield "seLinuxOptions"
    if "appArmorProfile" in context and context["appArmorProfile"].get("type") not in APPARMOR:
        yield "appArmorProfile"
    if "seccompProfile" in context and context["seccompProfile"].get("type") not in SECCOMP:
        yield "seccompProfile"
    if context.get("runAsNonRoot") is False:
        yield "runAsNonRoot"
    if context.get("runAsUser") == 0:
        yield "runAsUser"


def _of_container(container: dict[str, Any], spec: dict[str, Any]) -> Iterator[str]:
    context, of_pod = container.get("securityContext", {}), spec.get("securityContext", {})
    yield from _of_context(context)
    if context.get("privileged"):
        yield "privileged"
    if context.get("procMount", "Default") != "Default":
        yield "procMount"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "hostPort"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    capabilities = context.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "capabilities.drop"
    if not set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"}:
        yield "capabilities.add"
    if not context.get("runAsNonRoot", of_pod.get("runAsNonRoot")):
        yield "runAsNonRoot is not set"
    if "seccompProfile" not in context and "seccompProfile" not in of_pod:
        yield "seccompProfile is not set"
    yield from _of_probes(container)


def _of_probes(container: dict[str, Any]) -> Iterator[str]:
    """Since 1.34 a probe or hook may only address the pod itself."""
    probes = [container.get(name, {}) for name in ("livenessProbe", "readinessProbe", "startupProbe")]
    hooks = [container.get("lifecycle", {}).get(name, {}) for name in ("postStart", "preStop")]
    for each in probes + hooks:
        if any(each.get(kind, {}).get("host") for kind in ("httpGet", "tcpSocket")):
            yield "host of a probe or hook"
