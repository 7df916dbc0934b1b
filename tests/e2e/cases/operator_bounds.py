"""Where the operator ends a run by its own bounds: failures, preemptions, failures that gain nothing, and pods that are never scheduled."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from cluster import until
from kernel import kill
from release import JOB_LABEL, Release
from table import Row

from cases.operator_jobs import PLAIN, apply_plain
from cases.operator_steps import KNOWN_SECONDS, TRAINS_SECONDS, Look, Story, ledger_of, set_policy, status_of, suspended, trains
from cases.steps import GONE_SECONDS

CRASHED = 160
MAX_RESTARTS = 2
NO_PROGRESS_RESTARTS = 2
PENDING_SECONDS = 30
TOO_LARGE = "1000"
"""CPUs that no node has."""


def budget(release: Release) -> Iterator[Row]:
    """Pods that fail with 160 again and again end the run when maxRestarts is used up, with a ledger that says what happened."""
    release.install("job.enabled=false")
    # whose durable steps are not known has no lack of them either
    policy = {"maxRestarts": MAX_RESTARTS, "noProgressRestarts": 1}
    apply_plain(release, policy, f"import sys, time; time.sleep(3); sys.exit({CRASHED})")
    with Story(release, PLAIN) as story:
        look = story.wait_phase("Failed", 2 * TRAINS_SECONDS)
        failures = status_of(release, PLAIN)["restarts"]["failures"]
        until("a job that is paused", KNOWN_SECONDS, lambda: suspended(release, PLAIN))  # told first, then done
        good = look.reason == "RestartBudgetUsedUp" and failures == MAX_RESTARTS + 1
        words = f"{look.word}: {look.message[:200]}; {failures} failures, ledger {ledger_of(release, PLAIN)}"
        yield Row(
            f"exit {CRASHED} for ever, maxRestarts {MAX_RESTARTS}", f"Failed at failure {MAX_RESTARTS + 1}, suspended", words, good=good
        )


def preemptions(release: Release) -> Iterator[Row]:
    """A run that is evicted once more than maxPreemptions allows ends, its state saved; nothing of that counts as a failure."""
    started = time.time()
    release.install("replicas=1", "policy.maxPreemptions=1")
    with Story(release) as story:
        yield trains(story, "before", started)
        at = _evict(release)
        lost = story.wait_phase("Restarting", KNOWN_SECONDS, since=at)
        back = story.wait("Running again", TRAINS_SECONDS, lambda look: look.phase == "Running" and look.step > 0, since=lost.time)
        good = lost.reason == "Evicted" and 0 < back.durable <= back.step
        yield Row("evicted once", "Restarting (Evicted), Running", f"{story.words(at)}, step {back.step}", back.time - at, good)
        at = _evict(release)
        look, restarts = _ended(release, story, at), status_of(release)["restarts"]
        ledger = ledger_of(release)
        good = look.reason == "RestartBudgetUsedUp" and (restarts["preemptions"], restarts["failures"]) == (2, 0)
        good = good and ledger == ["Evicted", "Evicted", "RestartBudgetUsedUp Stop"] and story.last.durable >= back.step
        words = f"{story.words(at)}: {look.message[:200]}; ledger {ledger}, step {story.last.durable} durable"
        yield Row("evicted twice, maxPreemptions 1", "Failed (RestartBudgetUsedUp), suspended, no pod", words, look.time - at, good)


def no_progress(release: Release) -> Iterator[Row]:
    """Crashes in a row from which nothing newer becomes durable end the run, long before maxRestarts."""
    started = time.time()
    release.install("replicas=1", "config.checkpoint.every_steps=1000000")
    with Story(release) as story:
        yield trains(story, "before", started)
        at = time.time()
        release.kubectl("delete", "pod", f"{release.job}-master-0", "--wait=false")  # it saves as it leaves: the only durable step
        durable = story.wait("past a durable step", TRAINS_SECONDS, lambda look: look.durable > 0, since=at).durable
        lost = story.wait_phase("Restarting", TRAINS_SECONDS, since=at)
        set_policy(release, noProgressRestarts=NO_PROGRESS_RESTARTS)
        for _ in range(NO_PROGRESS_RESTARTS):
            story.wait("Running, with a step", TRAINS_SECONDS, lambda look: look.phase == "Running" and look.step > 0, since=lost.time)
            at = time.time()
            kill(release.pod_named("master-0"), "launch")
            lost = story.wait("told of the loss", KNOWN_SECONDS, lambda look: look.phase in {"Restarting", "Failed"}, since=at)
        look, ledger = _ended(release, story, at), ledger_of(release)
        good = look.reason == "NoProgress" and ledger == ["PodDeleted", *["Crash"] * NO_PROGRESS_RESTARTS, "NoProgress Stop"]
        words = f"{story.words(started)}: {look.message[:200]}; ledger {ledger}, step {story.last.durable} durable"
        what = f"{NO_PROGRESS_RESTARTS} crashes, nothing durable after step {durable}"
        yield Row(what, "Failed (NoProgress), suspended, no pod", words, look.time - at, good and story.last.durable == durable)


def pending(release: Release) -> Iterator[Row]:
    """A job that no node has room for ends when its pending deadline is over, with the scheduler's own words."""
    release.install("job.enabled=false")
    resources = {"resources": {"requests": {"cpu": TOO_LARGE}}}
    apply_plain(release, {"pendingDeadline": f"{PENDING_SECONDS}s"}, "pass", container=resources)
    with Story(release, PLAIN) as story:
        look = story.wait("Pending (Unschedulable)", TRAINS_SECONDS, lambda look: look.reason == "Unschedulable")
        yield Row("it asks for too much", "Pending (Unschedulable), in the scheduler's words", f"{look.word}: {look.message[:200]}")
        look = story.wait_phase("Failed", PENDING_SECONDS + TRAINS_SECONDS)
        said = look.message + " ".join(entry.get("message", "") for entry in status_of(release, PLAIN)["ledger"])
        left = release.items("pods", "-l", f"{JOB_LABEL}={PLAIN}")
        good = look.reason == "PendingDeadlineExceeded" and "Insufficient cpu" in said
        words = f"{look.word}: {look.message[:400]}; {len(left)} pods"
        yield Row(f"pendingDeadline {PENDING_SECONDS} s", "Failed (PendingDeadlineExceeded), in the scheduler's words", words, good=good)


def _ended(release: Release, story: Story, since: float) -> Look:
    """Failed, the job suspended, no pod left."""
    look = story.wait_phase("Failed", TRAINS_SECONDS, since=since)
    until("a job that is paused", KNOWN_SECONDS, lambda: suspended(release))
    until("no pods", GONE_SECONDS, lambda: not release.items("pods", "-l", f"{JOB_LABEL}={release.job}"))
    return look


def _evict(release: Release) -> float:
    """As a drain does it; gives the time."""
    pod = release.pod_named("master-0")["metadata"]["name"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": release.namespace}}
    at = time.time()
    release.kubectl("create", "--raw", f"/api/v1/namespaces/{release.namespace}/pods/{pod}/eviction", "-f", "-", stdin=json.dumps(body))
    return at
