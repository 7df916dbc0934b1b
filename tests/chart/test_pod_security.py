"""Every pod of every case, helm test's too, may run where Pod Security `restricted` is enforced; and each control is seen to refuse."""

import copy

import pytest
from chart import CASES, case_values, pods, template
from pod_security import CONTROLS, refused

GOOD = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}],
    "initContainers": [{"name": "b", "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}],
    "volumes": [{"name": "c", "emptyDir": {}}],
}
BAD = {
    "host process": {"securityContext": {"windowsOptions": {"hostProcess": True}}},
    "host namespaces": {"hostIPC": True},
    "privileged containers": {"initContainers": [{"securityContext": {"privileged": True}}]},
    "capabilities": {"initContainers": [{"securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}}]},
    "hostPath volumes": {"volumes": [{"hostPath": {"path": "/"}}]},
    "host ports": {"containers": [{"ports": [{"hostPort": 80}]}]},
    "host probes": {"containers": [{"livenessProbe": {"httpGet": {"host": "10.0.0.1"}}}]},
    "AppArmor": {"containers": [{"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}]},
    "SELinux type": {"securityContext": {"seLinuxOptions": {"type": "spc_t"}}},
    "SELinux user": {"securityContext": {"seLinuxOptions": {"user": "system_u"}}},
    "SELinux role": {"securityContext": {"seLinuxOptions": {"role": "system_r"}}},
    "proc mount": {"containers": [{"securityContext": {"procMount": "Unmasked"}}]},
    "seccomp": {"initContainers": [{"securityContext": {"seccompProfile": {"type": "Unconfined"}}}]},
    "sysctls": {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}},
    "volume types": {"volumes": [{"nfs": {"server": "a", "path": "/"}}]},
    "privilege escalation": {"initContainers": [{"securityContext": {"allowPrivilegeEscalation": None}}]},
    "running as non-root": {"containers": [{"securityContext": {"runAsNonRoot": False}}]},
    "non-root user": {"initContainers": [{"securityContext": {"runAsUser": 0}}]},
    "seccomp profile": {"securityContext": {"seccompProfile": None}},
    "dropped capabilities": {"initContainers": [{"securityContext": {"capabilities": {"drop": ["NET_RAW"]}}}]},
    "added capabilities": {"containers": [{"securityContext": {"capabilities": {"add": ["CHOWN"]}}}]},
}


def laid_over(base, change):
    """Maps key by key, the items of lists one by one."""
    if isinstance(base, dict) and isinstance(change, dict):
        return {**base, **{key: laid_over(base.get(key), value) for key, value in change.items()}}
    if isinstance(base, list) and isinstance(change, list) and all(isinstance(item, dict) for item in (*base, *change)):
        return [laid_over(one, other) for one, other in zip(base, change, strict=True)]
    return copy.deepcopy(change)


@pytest.mark.parametrize("case", CASES)
def test_every_pod_of_a_case_passes_restricted(case, tmp_path):
    found = list(pods(template(tmp_path, case_values(case)).objects))
    assert len(found) >= 3  # at least one that trains, helm test's, and the operator's
    for name, pod in found:
        assert refused(pod["spec"], "restricted") == [], name
        assert pod["spec"]["automountServiceAccountToken"] is (name == "operator")


@pytest.mark.parametrize("case", CASES)
def test_the_charts_own_containers_have_a_root_that_cannot_be_written(case, tmp_path):
    for name, pod in pods(template(tmp_path, case_values(case)).objects):
        own = [container for container in pod["spec"]["containers"] if container["name"] in {"pytorch", "config", "progress", "operator"}]
        assert own, name
        assert {container["securityContext"]["readOnlyRootFilesystem"] for container in own} == {True}


def test_a_pod_as_it_should_be_is_refused_by_nothing():
    assert refused(GOOD, "restricted") == []


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_a_control_refuses_what_it_is_there_for(control):
    bad = laid_over(GOOD, BAD[control.name])
    assert control.name in refused(bad, "restricted")
    assert (control.name in refused(bad, "baseline")) == (control.level == "baseline")


def test_a_users_container_that_says_nothing_is_refused(tmp_path):
    objects = template(tmp_path, {"extraInitContainers": [{"name": "init", "image": "busybox"}]}).objects
    assert ["privilege escalation", "dropped capabilities"] in [refused(pod["spec"], "restricted") for _, pod in pods(objects)]
