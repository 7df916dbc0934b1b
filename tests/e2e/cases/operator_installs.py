"""Ways in which operators and runs come and go: everything at once, releases that inherit the lead, and one operator for the cluster."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from cluster import OPERATOR_IMAGE, kubectl, until
from release import Release
from table import Row

from cases.operator_rights import denied
from cases.operator_steps import KNOWN_SECONDS, TRAINS_SECONDS, Story, leader, trains
from cases.steps import GONE_SECONDS

END_SECONDS = 60.0
"""Until a namespace with everything in it is gone."""
REMAINING = '{.status.phase} {.status.conditions[?(@.type=="NamespaceContentRemaining")].message}'
"""Of a namespace that is being deleted: "Some resources are remaining: pods. has 2 resource instances"."""
TAKEOVER_SECONDS = 20.0
MANIFESTS = "manifests/operator"
ITS_NAMESPACE, ITS_LABEL = "ddp-operator", "ddp-operator.io/operator-of=ddp"
"""What the manifests install, but for the CRD, which everybody shares."""


def gone(release: Release) -> Iterator[Row]:
    """A namespace is deleted with operator, run and job at work in it, and ends: nothing of ours holds it back."""
    started = time.time()
    release.install("replicas=2")
    with Story(release) as story:
        yield trains(story, "before", started)
    at = time.time()
    kubectl("delete", "namespace", release.namespace, "--wait=false")
    awaited: dict[str, float] = {}

    def is_gone() -> bool:
        found = kubectl("get", "namespace", release.namespace, "--ignore-not-found", "-o", f"jsonpath={REMAINING}").strip()
        awaited.update(dict.fromkeys(re.findall(r"(\S+) has \d+ resource", found), round(time.time() - at)))
        return not found

    until("no namespace", END_SECONDS + GONE_SECONDS, is_gone, pause=1)
    took = time.time() - at
    ours = [kind for kind in awaited if "ddp-operator.io" in kind]  # pods end in their own time, and claims after them
    words = f"gone; last seen after seconds: {awaited}"
    yield Row(
        "the namespace is deleted",
        f"gone in {END_SECONDS:.0f} s, no TrainingRun waited for",
        words,
        took,
        not ours,
        slow=took >= END_SECONDS,
    )


def heirs(release: Release) -> Iterator[Row]:
    """Two releases in a namespace: one operator leads; its release is uninstalled, and the other looks after its own run from then on."""
    other = Release(release.namespace, name="ddp-other")
    started = time.time()
    release.install("replicas=1")
    with Story(release) as story:
        yield trains(story, "the first", started)
    at = time.time()
    other.install("replicas=1")
    with Story(other) as story:
        yield trains(story, "the second", at)
        first = leader(release)
        yield Row("who leads", "the first one's operator", first, good=first.startswith("ddp-demo-operator-"))
        at = time.time()
        release.do_helm("uninstall")
        heir = until(
            "another leader",
            TAKEOVER_SECONDS + KNOWN_SECONDS,
            lambda: name if (name := leader(release)).startswith("ddp-other-operator-") else None,
        )
        took = time.time() - at
        yield Row(
            "the first is uninstalled", f"the second leads within {TAKEOVER_SECONDS:.0f} s", heir, took, slow=took >= TAKEOVER_SECONDS
        )
        step = story.last.step
        look = story.wait("further on", TRAINS_SECONDS, lambda look: look.phase == "Running" and look.step > step, since=at + took)
        yield Row("the second's run", "still looked after", f"Running, step {look.step}", good=look.restarts == 0)
        at = time.time()
        other.kubectl("delete", "pod", f"{other.job}-master-0", "--wait=false")
        look = story.wait_phase("Restarting", KNOWN_SECONDS, since=at)
        yield Row("and its losses are seen", "Restarting", f"{look.word}: {look.message[:160]}", look.time - at)
    other.do_helm("uninstall")


def everywhere(release: Release) -> Iterator[Row]:
    """One operator for the cluster looks after a run of another namespace, by the chart and by the manifests, and is denied nothing."""
    other = Release(f"{release.namespace}-run", name="ddp-other")
    other.delete()
    _remove_manifests()
    release.afterwards += [_remove_manifests, other.delete]
    other.create_namespace()
    release.install("job.enabled=false", "operator.clusterWide=true")
    started = time.time()
    other.install("replicas=2", "operator.enabled=false", "trainingRun.enabled=true")
    with Story(other) as story:
        yield trains(story, f"a run in {other.namespace}", started)
        yield _lost_and_back(other, story, "its worker is deleted")
        yield denied(release.namespace)
        release.do_helm("uninstall")
        kubectl("apply", "-k", MANIFESTS)
        kubectl("-n", ITS_NAMESPACE, "set", "image", "deployment/ddp-operator", f"operator={OPERATOR_IMAGE}")
        kubectl("-n", ITS_NAMESPACE, "rollout", "status", "deployment/ddp-operator", "--timeout=90s")
        yield _lost_and_back(other, story, f"kubectl apply -k {MANIFESTS}, and again")
        yield denied(ITS_NAMESPACE)


def _lost_and_back(release: Release, story: Story, what: str) -> Row:
    at, durable = time.time(), story.last.durable
    release.kubectl("delete", "pod", f"{release.job}-worker-0", "--wait=false")
    lost = story.wait_phase("Restarting", KNOWN_SECONDS, since=at)
    back = story.wait("Running again", TRAINS_SECONDS, lambda look: look.phase == "Running", since=lost.time)
    good = lost.reason == "PodDeleted" and back.step >= durable
    return Row(what, "Restarting (PodDeleted), Running", f"{story.words(at)}, step {back.step}", back.time - at, good)


def _remove_manifests() -> None:
    kubectl("delete", "namespace", ITS_NAMESPACE, "--ignore-not-found", timeout=240)
    kubectl("delete", "clusterroles,clusterrolebindings", "-l", ITS_LABEL)
