"""Ways in which operators and runs come and go: jobs of others, everything at once, and releases that inherit the lead."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

from cluster import OPERATOR_IMAGE, CaseError, kubectl, until
from release import Release
from table import Row

from cases.operator_steps import KNOWN_SECONDS, TRAINS_SECONDS, Story, status_of, trains
from cases.steps import GONE_SECONDS

END_SECONDS = 60.0
"""Until a namespace with everything in it is gone."""
REMAINING = '{.status.phase} {.status.conditions[?(@.type=="NamespaceContentRemaining")].message}'
"""Of a namespace that is being deleted: "Some resources are remaining: pods. has 2 resource instances"."""
TAKEOVER_SECONDS = 20.0
FOREIGN = "mnist"
FOREIGN_SECONDS = 40


def foreign_job() -> dict[str, Any]:
    """Like upstream's simple.yaml, with an image that is not the trainer's: no telemetry, restartPolicy OnFailure."""
    container = {"name": "pytorch", "image": OPERATOR_IMAGE, "command": ["python", "-c", f"import time; time.sleep({FOREIGN_SECONDS})"]}
    replica = {"replicas": 1, "restartPolicy": "OnFailure", "template": {"spec": {"containers": [container]}}}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": FOREIGN, "labels": {"ddp-operator.io/track": "true"}},
        "spec": {"pytorchReplicaSpecs": {"Master": replica, "Worker": replica}},
    }


def adopted(release: Release) -> Iterator[Row]:
    """job.enabled=false installs the operator alone; a labelled job of somebody else's is adopted, followed to its end, and goes alone."""
    release.install("job.enabled=false")
    release.apply(foreign_job())
    started = time.time()
    until("a TrainingRun", KNOWN_SECONDS, lambda: release.kubectl("get", "trainingrun", FOREIGN, check=False).startswith("NAME"))
    with Story(release, FOREIGN) as story:
        look = story.wait_phase("Running", TRAINS_SECONDS)
        yield Row(
            "a foreign job",
            "Running, progress unknown",
            f"{look.word}: {look.message[:160]}",
            look.time - started,
            "progress" not in status_of(release, FOREIGN),
        )
        look = story.wait_phase("Succeeded", FOREIGN_SECONDS + TRAINS_SECONDS)
        yield Row("its end", "Succeeded", story.words(), look.time - started)
    at = time.time()
    release.kubectl("delete", "pytorchjob", FOREIGN)
    until("no TrainingRun", KNOWN_SECONDS, lambda: not release.items("trainingruns"))
    yield Row("the job is deleted", "its TrainingRun goes with it", "gone", time.time() - at)


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
        leader = _leader(release)
        yield Row("who leads", "the first one's operator", leader, good=leader.startswith("ddp-demo-operator-"))
        at = time.time()
        release.do_helm("uninstall")
        heir = until(
            "another leader",
            TAKEOVER_SECONDS + KNOWN_SECONDS,
            lambda: name if (name := _leader(release)).startswith("ddp-other-operator-") else None,
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


def _leader(release: Release) -> str:
    found = json.loads(release.kubectl("get", "lease", "ddp-operator", "-o", "json"))
    if not (holder := found["spec"].get("holderIdentity")):
        raise CaseError("nobody holds the lease")
    return str(holder)
