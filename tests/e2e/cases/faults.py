"""Pods and ranks that are lost, at work and while they start: training goes on, in seconds, and codes say what happened."""

from __future__ import annotations

import time
from collections.abc import Iterator

from cluster import NotRunError, kubectl, until, workers
from release import Release
from table import Row
from watching import place_of

from cases.operator_steps import KNOWN_SECONDS, TRAINS_SECONDS, Story, trains
from cases.steps import MASTER_SECONDS, PREEMPTED, WORKER_SECONDS, delete_pod, finish, install, kill_pod, kill_rank, recovered, uninstall

TELEMETRY_LISTENS = ":24B8 00000000:0000 0A"
"""Port 9400 in /proc/net/tcp. The agent opens it after it has begun to listen to SIGTERM, and before it imports torch."""
AT_ONCE_SECONDS = 5.0
SELDOM = 1000
"""Steps between two states on the claim that no case waits for: what a fault does not lose was in memory."""
GRACE_SECONDS = 60.0
"""Half of the grace period: a pod that takes longer was killed, or waited for."""


def short(release: Release) -> Iterator[Row]:
    """One install, one pod killed, one uninstall, and the operator says what happens: what every change must pass."""
    started = time.time()
    yield from install(release, "replicas=2")
    with Story(release) as story:
        yield trains(story, "kubectl get trainingruns", started)
        release.follow()
        release.wait_step(12)
        hit = time.time()
        yield delete_pod(release, "worker-0", WORKER_SECONDS)
        lost = story.wait_phase("Restarting", KNOWN_SECONDS, since=hit)
        back = story.wait("Running again", TRAINS_SECONDS, lambda look: look.phase == "Running", since=lost.time)
        words = f"{story.words(hit)}, step {back.step}, {back.restarts} restart"
        yield Row("the operator's line", "Restarting (PodDeleted), Running; one restart", words, back.time - hit, back.restarts == 1)
    yield uninstall(release)


def train(release: Release) -> Iterator[Row]:
    """4 pods on 2 nodes go on through a killed rank, a worker and a master deleted, then killed; at the end a second start ends at once."""
    yield from install(release, "replicas=4", f"config.checkpoint.every_steps={SELDOM}")
    nodes = {pod["spec"]["nodeName"] for pod in release.pods()}
    yield Row("pods", "4 on 2 nodes", f"{len(release.pods())} on {len(nodes)}", good=len(release.pods()) == 4 and len(nodes) == 2)
    release.follow()
    release.wait_step(15)
    yield kill_rank(release, "worker-0")
    release.wait_steps(12)
    yield delete_pod(release, "worker-1", WORKER_SECONDS)
    release.wait_steps(12)
    yield delete_pod(release, "master-0", MASTER_SECONDS)
    for place, bound in (("worker-1", WORKER_SECONDS), ("master-0", MASTER_SECONDS)):
        release.wait_steps(12)
        yield kill_pod(release, place, bound)
    release.wait_steps(12)
    yield finish(release)
    yield _again(release)


def _again(release: Release) -> Row:
    """A finished run that is applied again ends at once with 0."""
    started = time.time()
    release.upgrade("podLabels.again=yes")
    release.wait_end("Succeeded", 120)
    took = time.time() - started
    code = release.wait_exit("master-0", started, 30).code
    steps = len(release.diary.of("first_step", started)) + len(release.diary.of("checkpoint", started))
    said = f"Succeeded, master-0: {code}, {steps} steps or checkpoints"
    return Row("finished run applied again", "Succeeded, 0, no step trained", said, took, code == 0 and not steps)


def starting(release: Release) -> Iterator[Row]:
    """A pod that is told to stop while it imports leaves with 143 at once, not after its grace period; its successor trains."""
    release.watch_exits()
    release.install("replicas=2")
    pod = f"{release.job}-master-0"
    until("the master's pod listens", 60, lambda: TELEMETRY_LISTENS in _connections(release, pod), pause=0.1)
    started = time.time()
    release.kubectl("delete", "pod", pod, "--wait=false")
    fault = release.begin("delete master-0 while it imports", "master-0", started)
    end = release.wait_exit("master-0", fault.started, 180)
    took = end.heard - fault.started
    good = end.code == PREEMPTED and took < GRACE_SECONDS
    seen = f"{end.code}: {end.message[:160]}"
    yield Row(fault.name, f"{PREEMPTED} within {AT_ONCE_SECONDS:.0f} s", seen, took, good, slow=took >= AT_ONCE_SECONDS)
    yield Row("its successor", "trains", "trains", release.first_step() - fault.started)


def _connections(release: Release, pod: str) -> str:
    return release.kubectl("exec", pod, "-c", "pytorch", "--", "cat", "/proc/net/tcp")


def drain(release: Release) -> Iterator[Row]:
    """Drain the node that does not hold the claim: its pods come back elsewhere and training goes on."""
    if len(workers()) < 2:
        raise NotRunError("a drain needs two nodes that take work")
    yield from install(release, "replicas=4")
    release.follow()
    release.wait_step(15)
    nodes = {place_of(pod["metadata"]["name"]): pod["spec"]["nodeName"] for pod in release.pods()}
    node = next((name for name in nodes.values() if name != nodes["master-0"]), None)
    if node is None:
        raise NotRunError("all pods came to the master's node, so that there is none to drain")
    hit = ", ".join(place for place, name in sorted(nodes.items()) if name == node)
    release.afterwards.append(lambda: kubectl("uncordon", node))
    fault = release.begin(f"drain {node} ({hit})")
    try:
        kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=150s", timeout=180)
        seen = release.recovery(fault.started, seconds=180)
    finally:
        kubectl("uncordon", node)
    codes = {code for found in fault.codes(release.diary.exits).values() for code in found}
    yield recovered(release, seen, f"training goes on, {PREEMPTED} alone", good=codes == {PREEMPTED})
    until("the training operator takes jobs, if it was there too", 120, lambda: _takes(release))
    yield finish(release, "after the drain")


def _takes(release: Release) -> str:
    return release.kubectl("annotate", "pytorchjob", release.job, "probe=yes", "--dry-run=server", timeout=30)
