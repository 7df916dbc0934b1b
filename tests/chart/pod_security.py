"""Kubernetes' Pod Security Standards, baseline and restricted, as one table: control, level, what it refuses.

After https://kubernetes.io/docs/concepts/security/pod-security-standards/ (v1.34), for Linux pods. `restricted` includes `baseline`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]
HARMLESS_CAPABILITIES = frozenset(
    [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ]
)
SELINUX_TYPES = frozenset({"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"})
SYSCTLS = frozenset(
    [
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
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
    ]
)
VOLUMES = frozenset(["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"])
SECCOMP = frozenset({"RuntimeDefault", "Localhost"})


def containers(spec: Spec) -> Iterator[Spec]:
    """Of every kind: a policy that looks at some lets the others through."""
    for group in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(group, [])


def context(holder: Spec) -> Spec:
    return holder.get("securityContext") or {}


def at_any(spec: Spec, *path: str) -> Iterator[Any]:
    """This field of the security contexts of the pod and of all its containers, where it is set."""
    for holder in (spec, *containers(spec)):
        node: Any = context(holder)
        for key in path:
            node = (node or {}).get(key)
        if node is not None:
            yield node


def in_effect(spec: Spec, *path: str) -> Iterator[Any]:
    """This field as it holds for each container: its own, or else the pod's."""
    for container in containers(spec):
        found = list(at_any({"securityContext": context(container)}, *path)) or list(at_any({"securityContext": context(spec)}, *path))
        yield found[0] if found else None


def capabilities(spec: Spec, verb: str) -> Iterator[set[str]]:
    for container in containers(spec):
        yield set((context(container).get("capabilities") or {}).get(verb) or [])


def handlers(spec: Spec) -> Iterator[Spec]:
    """Probes and lifecycle hooks."""
    for container in containers(spec):
        yield from (container[name] for name in ("livenessProbe", "readinessProbe", "startupProbe") if name in container)
        yield from (container.get("lifecycle") or {}).values()


@dataclass(frozen=True)
class Control:
    """One row of the standard."""

    name: str
    level: str
    refuses: Callable[[Spec], bool]


CONTROLS = (
    Control("host process", "baseline", lambda spec: any(at_any(spec, "windowsOptions", "hostProcess"))),
    Control("host namespaces", "baseline", lambda spec: any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))),
    Control("privileged containers", "baseline", lambda spec: any(at_any(spec, "privileged"))),
    Control("capabilities", "baseline", lambda spec: any(added - HARMLESS_CAPABILITIES for added in capabilities(spec, "add"))),
    Control("hostPath volumes", "baseline", lambda spec: any("hostPath" in volume for volume in spec.get("volumes", []))),
    Control("host ports", "baseline", lambda spec: any(port.get("hostPort") for c in containers(spec) for port in c.get("ports", []))),
    Control(
        "host probes",
        "baseline",
        lambda spec: any((handler.get(kind) or {}).get("host") for handler in handlers(spec) for kind in ("httpGet", "tcpSocket")),
    ),
    Control("AppArmor", "baseline", lambda spec: "Unconfined" in at_any(spec, "appArmorProfile", "type")),
    Control("SELinux type", "baseline", lambda spec: bool({*at_any(spec, "seLinuxOptions", "type")} - SELINUX_TYPES)),
    Control("SELinux user", "baseline", lambda spec: any(at_any(spec, "seLinuxOptions", "user"))),
    Control("SELinux role", "baseline", lambda spec: any(at_any(spec, "seLinuxOptions", "role"))),
    Control("proc mount", "baseline", lambda spec: bool({*at_any(spec, "procMount")} - {"Default"})),
    Control("seccomp", "baseline", lambda spec: "Unconfined" in at_any(spec, "seccompProfile", "type")),
    Control("sysctls", "baseline", lambda spec: bool({entry["name"] for entry in context(spec).get("sysctls", [])} - SYSCTLS)),
    Control("volume types", "restricted", lambda spec: any(volume.keys() - {"name"} - VOLUMES for volume in spec.get("volumes", []))),
    Control(
        "privilege escalation",
        "restricted",
        lambda spec: any(context(container).get("allowPrivilegeEscalation") is not False for container in containers(spec)),
    ),
    Control("running as non-root", "restricted", lambda spec: not all(in_effect(spec, "runAsNonRoot"))),
    Control("non-root user", "restricted", lambda spec: 0 in at_any(spec, "runAsUser")),
    Control("seccomp profile", "restricted", lambda spec: bool({*in_effect(spec, "seccompProfile", "type")} - SECCOMP)),
    Control("dropped capabilities", "restricted", lambda spec: any("ALL" not in dropped for dropped in capabilities(spec, "drop"))),
    Control("added capabilities", "restricted", lambda spec: any(added - {"NET_BIND_SERVICE"} for added in capabilities(spec, "add"))),
)


def refused(spec: Spec, level: str) -> list[str]:
    """Names of the controls by which a namespace of this level would refuse the pod."""
    return [control.name for control in CONTROLS if control.level in {"baseline", level} and control.refuses(spec)]
