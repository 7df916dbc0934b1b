"""A node is lost for good: its container is stopped, as a machine that dies."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from cluster import NotRunError, kubectl, run, until, workers
from release import JOB_LABEL, Release, bystander
from table import Row
from watching import place_of

from cases.operator_steps import TRAINS_SECONDS, Story, set_policy, status_of, trains

TOLD_SECONDS = 10
"""Until pods are told to leave (`policy.nodeLostAfterSeconds`); the operator's own bound is a minute more, and set shorter here."""
FREED_AFTER_SECONDS = 20
GRACE_SECONDS = 30
"""Pods that were told to leave get it before they are freed: the node may only be unheard, and they may still save."""
NOTICED_SECONDS = 60.0
"""Until Kubernetes says that the node does not answer: 40 s by default."""
READY_SECONDS = 120.0
CLAIM = "there"


def node_lost(release: Release) -> Iterator[Row]:
    """A node dies: its pods are freed, the run that lost only a worker goes on, the one whose claim is there says so and waits."""
    stays, dies = _nodes()
    other = Release(release.namespace, name="ddp-other")
    policy = (f"policy.nodeLostAfterSeconds={TOLD_SECONDS}", f"job.terminationGracePeriodSeconds={GRACE_SECONDS}")
    release.afterwards.append(lambda: kubectl("uncordon", stays, dies))
    _claim(release, dies)
    started = time.time()
    kubectl("cordon", dies)
    release.install("replicas=2", *policy)  # claim, master and operator on the node that stays
    with Story(release) as first, Story(other) as second:
        yield trains(first, f"a run on {stays}", started)
        kubectl("uncordon", dies)
        kubectl("cordon", stays)
        started = time.time()
        other.install("replicas=1", *policy, "operator.enabled=false", "trainingRun.enabled=true", f"checkpoint.existingClaim={CLAIM}")
        release.kubectl("delete", "pod", f"{release.job}-worker-0", "--wait=false")
        until("the worker on the other node", TRAINS_SECONDS, lambda: _place(release, "worker-0") == dies)
        kubectl("uncordon", stays)
        yield trains(second, f"a run with its claim on {dies}", started)
        first.wait("Restarting", TRAINS_SECONDS, lambda look: look.phase == "Restarting", since=started)
        moved = first.last.time
        first.wait("Running again", TRAINS_SECONDS, lambda look: look.phase == "Running", since=moved)
        for one in (release, other):
            set_policy(one, nodeLostAfter=f"{FREED_AFTER_SECONDS}s")
        release.afterwards.append(lambda: _start(dies))
        first.wait("past a durable step", TRAINS_SECONDS, lambda look: look.durable > 0)
        durable, at = first.last.durable, time.time()
        run("docker", "kill", dies)
        yield from _goes_on(release, first, stays, durable, at)
        yield _says_why(other, second, dies, at)
        _start(dies)
        at = time.time()
        look = second.wait("Running", TRAINS_SECONDS, lambda look: look.phase == "Running" and look.step > 0, since=at)
        yield Row("the node is back", "the run goes on, at its durable step", f"{second.words(at)}, step {look.step}", look.time - at)


def _goes_on(release: Release, story: Story, stays: str, durable: int, at: float) -> Iterator[Row]:
    what, bound = "Restarting (NodeLost)", NOTICED_SECONDS + TRAINS_SECONDS  # the trainer notices first, and cannot know why
    lost = story.wait(what, bound, lambda look: (look.phase, look.reason) == ("Restarting", "NodeLost"), since=at)
    yield Row("its node is killed", what, f"{lost.word}: {lost.message[:200]}", lost.time - at)
    until("the worker elsewhere", TRAINS_SECONDS, lambda: _place(release, "worker-0") == stays)
    back = story.wait("Running", TRAINS_SECONDS, lambda look: look.phase == "Running" and look.step > durable, since=lost.time)
    last = status_of(release)["ledger"][-1]
    entry = f"{last['cause']} {last.get('action', '')} of {place_of(last.get('pod', '-?-?'))}"
    good = last["cause"] == "NodeLost" and back.step >= durable
    words = f"{story.words(at)}, step {back.step}; {entry}"
    yield Row("its worker", f"freed; Running at step >= {durable} elsewhere", words, back.time - at, good)


def _says_why(release: Release, story: Story, dies: str, at: float) -> Row:
    """The master's pod is freed and made again; its claim is on the node that is gone, so it cannot be placed."""

    def look() -> str | None:
        found = release.items("pods", "-l", f"{JOB_LABEL}={release.job}")
        placed = [pod for pod in found if pod["spec"].get("nodeName") == dies or "deletionTimestamp" in pod["metadata"]]
        return "freed" if found and not placed else None

    until("the pod freed", TRAINS_SECONDS, look)
    said = story.wait("told why", TRAINS_SECONDS, lambda look: look.phase == "Restarting" and "PersistentVolume" in look.message, since=at)
    words = f"{story.words(at)}: {said.message[:400]}"
    return Row("the run with its claim there", "pod freed; it says why it waits", words, said.time - at)


def _place(release: Release, place: str) -> str:
    pod = release.pod_named(place)
    return "" if "deletionTimestamp" in pod["metadata"] else str(pod["spec"].get("nodeName", ""))


def _nodes() -> tuple[str, str]:
    """The worker node with the training operator, which must stay, and another one."""
    pods = json.loads(kubectl("-n", "kubeflow", "get", "pods", "-o", "json"))["items"]
    stays = next(pod["spec"]["nodeName"] for pod in pods)
    others = [name for name in workers() if name != stays]
    if not others:
        raise NotRunError("there is only one node that takes work; kind-config.yaml makes two")
    return stays, others[0]


def _claim(release: Release, node: str) -> None:
    """A claim whose volume is on that node: a pod has been there with it."""
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}
    release.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}, "spec": spec})
    volumes = [{"name": "claim", "persistentVolumeClaim": {"claimName": CLAIM}}]
    release.apply(bystander("first", ["true"], volumes=volumes, nodeSelector={"kubernetes.io/hostname": node}, restartPolicy="Never"))
    until("a bound claim", TRAINS_SECONDS, lambda: release.kubectl("get", "pvc", CLAIM, "-o", "jsonpath={.status.phase}") == "Bound")
    release.kubectl("delete", "pod", "first", "--ignore-not-found")


def _start(node: str) -> None:
    """Start it again, and wait until it takes work."""
    run("docker", "start", node)
    kubectl("wait", "--for=condition=Ready", f"node/{node}", f"--timeout={READY_SECONDS:.0f}s", timeout=READY_SECONDS + 20)
    kubectl("uncordon", node)
