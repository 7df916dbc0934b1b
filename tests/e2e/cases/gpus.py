"""GPUs as the scheduler, the kubelet and NVIDIA's device plugin see them. Over a mock driver pods compute on the CPU; the rest is real."""

from __future__ import annotations

import time
from collections.abc import Iterator

from cluster import GPU, NotRunError, allocatable_gpus, kubectl, until
from release import Release
from table import Row

from cases.steps import finish, install, warning

WANTED = 4
ON_CPU = ("config.distributed.device=cpu", "config.distributed.backend=gloo")
EVENT_SECONDS = 60.0
HEALTH_SECONDS = 60.0
"""The kubelet tells of a device with its next status, which is up to 10 s later."""
SYSTEM, PLUGIN = ("-n", "kube-system"), "nvidia-device-plugin"


def gpu(release: Release) -> Iterator[Row]:
    """4 pods with a GPU each; 2 pods with 2 GPUs and 2 ranks each, to the end; and more than there are, which an event says."""
    _assert_offered()
    yield from install(release, *ON_CPU, "replicas=4", "gpusPerReplica=1")
    release.follow()
    given = _given(release)
    distinct = {uuid for uuids in given.values() for uuid in uuids}
    yield Row(
        "4 pods x 1 GPU",
        "a GPU of its own in each",
        _words(given),
        good=len(given) == 4 and {*map(len, given.values())} == {1} and len(distinct) == 4,
    )
    release.wait_step(12)
    started = time.time()
    release.upgrade("replicas=2", "gpusPerReplica=2")
    seen = release.recovery(started, seconds=240, world_size=4)
    given = _given(release)
    distinct = {uuid for uuids in given.values() for uuid in uuids}
    world = {event["attempt"]: event["world_size"] for event in release.diary.of("form")}[seen.attempt]
    ranks = release.kubectl("get", "pytorchjob", release.job, "-o", "jsonpath={.spec.nprocPerNode}")
    good = {*map(len, given.values())} == {2} and len(given) == 2 and len(distinct) == 4 and (world, ranks) == (4, "2")
    yield Row(
        "2 pods x 2 GPUs", "two GPUs in each pod, 2 x 2 ranks", f"{_words(given)}; {world} ranks, {ranks} a pod", seen.time - started, good
    )
    yield finish(release, "2 pods x 2 GPUs, to the end")
    release.kubectl("delete", "events", "--all")  # pods of the upgrade before may have waited for GPUs too
    release.upgrade("replicas=8", "gpusPerReplica=1")
    started = time.time()
    said = until("an event that names the GPUs", EVENT_SECONDS, lambda: warning(release, f"Insufficient {GPU}"))
    yield Row("more GPUs than there are", "an event says it", said, time.time() - started)


def health(release: Release) -> Iterator[Row]:
    """A GPU breaks (an XID of the mock driver): the node offers one less, the pods go on; a new plugin's pod finds it well again."""
    _assert_offered()
    if not kubectl(*SYSTEM, "get", "configmap", "mock-nvml", "--ignore-not-found", "-o", "name").strip():
        raise NotRunError("a GPU can be broken only over the mock driver: run kind-up.sh with NVIDIA_PLUGIN_IMAGE")
    yield from install(release, *ON_CPU, "replicas=2", "gpusPerReplica=1")
    release.follow()
    before = release.wait_step(5)
    node = release.pod_named("worker-0")["spec"]["nodeName"]
    had = allocatable_gpus()[node]
    release.afterwards.append(lambda: _renew_plugin(node))
    started = time.time()
    kubectl(*SYSTEM, "exec", _plugin(node), "-c", PLUGIN, "--", "mock-nvml-ctl", "xid", "0", "79")
    until(f"{node} offers one GPU less", HEALTH_SECONDS, lambda: allocatable_gpus()[node] == had - 1, pause=0.5)
    took = time.time() - started
    seen = release.wait_steps(10)
    good = seen.attempt == before.attempt and not release.diary.exits
    words = f"{had} -> {allocatable_gpus()[node]}; step {seen.step}, attempt {seen.attempt}, {len(release.diary.exits)} pods ended"
    yield Row(f"XID 79 on GPU 0 of {node}", "one less allocatable, pods go on", words, took, good)
    started = time.time()
    _renew_plugin(node)
    until(f"{node} offers it again", HEALTH_SECONDS, lambda: allocatable_gpus()[node] == had, pause=0.5)
    yield Row("the plugin's pod is replaced", f"{had} allocatable again", f"{allocatable_gpus()[node]}", time.time() - started)


def _assert_offered() -> None:
    if (offer := sum(allocatable_gpus().values())) < WANTED:
        raise NotRunError(f"the nodes offer {offer} {GPU}, {WANTED} are needed; run kind-up.sh with NVIDIA_PLUGIN_IMAGE")


def _given(release: Release) -> dict[str, list[str]]:
    """The GPUs that the plugin gave to each pod of the newest job."""
    names = [pod["metadata"]["name"] for pod in release.pods()]
    return {
        name: release.kubectl("exec", name, "-c", "pytorch", "--", "printenv", "NVIDIA_VISIBLE_DEVICES").strip().split(",")
        for name in names
    }


def _words(given: dict[str, list[str]]) -> str:
    return (
        f"{[len(uuids) for uuids in given.values()]} in {len(given)} pods, {len({u for uuids in given.values() for u in uuids})} different"
    )


def _plugin(node: str) -> str:
    place = ("--field-selector", f"spec.nodeName={node}", "-o", "jsonpath={.items[0].metadata.name}")
    return kubectl(*SYSTEM, "get", "pods", "-l", f"app={PLUGIN}", *place)


def _renew_plugin(node: str) -> None:
    kubectl(*SYSTEM, "delete", "pod", _plugin(node), "--wait=true")
    kubectl(*SYSTEM, "rollout", "status", f"daemonset/{PLUGIN}", "--timeout=90s")
