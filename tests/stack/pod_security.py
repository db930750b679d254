"""Pod Security 'restricted', as Kubernetes 1.31 to 1.37 ask for it, written from its documentation.

https://kubernetes.io/docs/concepts/security/pod-security-standards/ (Linux pods).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected"}
VOLUMES.add("secret")
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}
PROFILES = ("RuntimeDefault", "Localhost")
SELINUX = ("container_t", "container_init_t", "container_kvm_t", "container_engine_t")


def violations(spec: dict[str, Any]) -> list[str]:
    """What Kubernetes would refuse of a pod's spec, one line each."""
    found = [f"{name} is set" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    pod = spec.get("securityContext", {})
    for volume in spec.get("volumes", []):
        found += [f"volume {volume['name']} is a {kind}" for kind in set(volume) - {"name"} - VOLUMES]
    found += [f"sysctl {each['name']}" for each in pod.get("sysctls", []) if each["name"] not in SYSCTLS]
    found += _of_context("pod", pod)
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(kind, []):
            found += _of_container(container, pod)
    return found


def _of_container(container: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    name, own = container["name"], container.get("securityContext", {})
    if own.get("privileged"):
        yield f"{name} is privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{name} does not forbid privilege escalation"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield f"{name} does not drop ALL"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"{name} adds capabilities"
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield f"{name} may run as root"
    if own.get("seccompProfile", pod.get("seccompProfile", {})).get("type") not in PROFILES:
        yield f"{name} has no seccomp profile"
    if own.get("procMount", "Default") != "Default":
        yield f"{name} unmasks /proc"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield f"{name} takes a port of the host"
    yield from (
        f"{name}: {kind} names a host"
        for kind in ("startupProbe", "readinessProbe", "livenessProbe")
        for way in ("httpGet", "tcpSocket")
        if container.get(kind, {}).get(way, {}).get("host")
    )
    yield from _of_context(name, own)


def _of_context(name: str, context: dict[str, Any]) -> Iterator[str]:
    if context.get("runAsUser") == 0:
        yield f"{name} runs as user 0"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield f"{name} is a process of the host"
    if context.get("seccompProfile", {}).get("type", "RuntimeDefault") not in PROFILES:
        yield f"{name} is unconfined"
    if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in PROFILES:
        yield f"{name} has no AppArmor"
    selinux = context.get("seLinuxOptions", {})
    if selinux.get("type", "container_t") not in SELINUX or selinux.get("user") or selinux.get("role"):
        yield f"{name} sets SELinux options"
