"""What the operator does to a run, and what it leaves alone."""

from __future__ import annotations

import time
from collections.abc import Iterator

from cluster import GPU, allocatable_gpus, until
from kernel import freeze
from release import JOB_LABEL, Release
from table import Row

from cases.operator_jobs import PLAIN, apply_plain
from cases.operator_steps import (
    KNOWN_SECONDS,
    TRAINS_SECONDS,
    Story,
    generation,
    ledger_of,
    set_policy,
    status_of,
    suspend,
    suspended,
    trains,
)
from cases.steps import GONE_SECONDS

LEFT_ALONE_SECONDS = 20.0
"""The operator looks several times meanwhile."""
DEADLINE_SECONDS = 60
HUNG_AFTER_SECONDS = 30
QUEUE = {"kueue.x-k8s.io/queue-name": "research"}
ACTIVE_SECONDS = 10
CLEANED_AFTER_SECONDS = 60
"""The operator's own bound: so long after a job's end its pods may run on."""
WORKER = f"{PLAIN}-worker-0"
FOR_EVER = "import time; time.sleep(100000)"


def paused(release: Release) -> Iterator[Row]:
    """A user suspends the job and resumes it: nobody undoes it, nothing is counted, training goes on from the durable step."""
    started = time.time()
    release.install("replicas=2")
    with Story(release) as story:
        yield trains(story, "before", started)
        story.wait("past a durable step", TRAINS_SECONDS, lambda look: look.durable > 0)
        at = suspend(release, wish=True)
        look = story.wait_phase("Suspended", KNOWN_SECONDS + GONE_SECONDS, since=at)
        until("no pods", GONE_SECONDS, lambda: not release.items("pods", "-l", f"{JOB_LABEL}={release.job}"))
        time.sleep(LEFT_ALONE_SECONDS)  # that nothing happens can only be seen by waiting
        yield Row("a user suspends", "Suspended, and left so", story.words(at), look.time - at, suspended(release))
        durable, at = story.last.durable, suspend(release, wish=False)
        back = story.wait("Running again", TRAINS_SECONDS, lambda look: look.phase == "Running" and look.step > 0, since=at)
        ledger = status_of(release).get("ledger", [])
        words = f"{story.words(at)}, step {back.step}, {len(ledger)} entries in the ledger"
        yield Row("and resumes", f"Running at step >= {durable}, empty ledger", words, back.time - at, back.step >= durable and not ledger)


def deadline(release: Release) -> Iterator[Row]:
    """An active deadline ends a run that goes its quiet way: Failed with the cause, the job suspended, no pod left."""
    started = time.time()
    release.install("replicas=1", f"policy.activeDeadlineSeconds={DEADLINE_SECONDS}")
    with Story(release) as story:
        look = story.wait_phase("Failed", DEADLINE_SECONDS + TRAINS_SECONDS, since=started)
        until("no pods", GONE_SECONDS, lambda: not release.items("pods", "-l", f"{JOB_LABEL}={release.job}"))
        good = look.reason == "DeadlineExceeded" and suspended(release)
        words = f"{story.words(started)}: {look.message[:160]}"
        yield Row(f"active deadline of {DEADLINE_SECONDS} s", "Failed (DeadlineExceeded), suspended", words, look.time - started, good)


def hung(release: Release) -> Iterator[Row]:
    """Every process of the gang stands still, agents and watchdogs too: Hung, then one gang restart, then Running at the durable step."""
    started = time.time()
    release.install("replicas=2", "job.terminationGracePeriodSeconds=15")
    with Story(release) as story:
        yield trains(story, "before", started)
        story.wait("past a durable step", TRAINS_SECONDS, lambda look: look.durable > 0)
        set_policy(release, hungAfter=f"{HUNG_AFTER_SECONDS}s")
        durable, at = story.last.durable, time.time()
        for pod in release.pods():
            freeze(pod)
        look = story.wait_phase("Hung", HUNG_AFTER_SECONDS + 4 * KNOWN_SECONDS, since=at)  # a silent agent is asked less often
        yield Row("the gang is frozen", "Hung", f"{look.word}: {look.message[:160]}", look.time - at)
        back = story.wait("Running again", TRAINS_SECONDS, lambda look: look.phase == "Running", since=look.time)
        status = status_of(release)
        words = f"{story.words(at)}, step {back.step}; ledger {[entry['cause'] + ' ' + entry['action'] for entry in status['ledger']]}"
        good = back.step >= durable and status["restarts"]["byOperator"] == 1 and not suspended(release)
        yield Row("gang restart", f"Running at step >= {durable}, once, not suspended", words, back.time - at, good)


def queued(release: Release) -> Iterator[Row]:
    """A job of Kueue's: what Kueue has suspended stays so, and what it has admitted is not suspended, whatever bound is over."""
    release.install("job.enabled=false")
    policy = {"activeDeadline": f"{ACTIVE_SECONDS}s"}
    apply_plain(release, policy, FOR_EVER, labels=QUEUE, run_policy={"suspend": True})
    with Story(release, PLAIN) as story:
        yield _held_back(release, story, "Kueue has suspended it", 0.0, changes=1)
        at = suspend(release, PLAIN, wish=False)
        look = story.wait_phase("Running", TRAINS_SECONDS, since=at)
        overdue = until("a deadline that is over", ACTIVE_SECONDS + KNOWN_SECONDS, lambda: status_of(release, PLAIN).get("overdue"))
        time.sleep(LEFT_ALONE_SECONDS)
        good = overdue == "DeadlineExceeded" and story.last.phase == "Running" and generation(release, PLAIN) == 2
        words = f"{story.words(at)}, {overdue} reported, generation {generation(release, PLAIN)}"
        yield Row(f"Kueue admits it, {ACTIVE_SECONDS} s are allowed", "Running; told, and left so", words, look.time - at, good)
        yield _held_back(release, story, "Kueue takes it back", suspend(release, PLAIN, wish=True), changes=3)


def _held_back(release: Release, story: Story, what: str, since: float, changes: int) -> Row:
    look = story.wait("Pending (Queued)", KNOWN_SECONDS, lambda look: look.word == "Pending (Queued)", since=since)
    until("no pods", GONE_SECONDS, lambda: not release.items("pods", "-l", f"{JOB_LABEL}={PLAIN}"))
    time.sleep(LEFT_ALONE_SECONDS)
    good = suspended(release, PLAIN) and generation(release, PLAIN) == changes and story.last.word == "Pending (Queued)"
    words = f"{story.words(since)}: {look.message}; generation {generation(release, PLAIN)}"
    return Row(what, "Pending (Queued), and left so", words, look.time - since if since else None, good)


def leftovers(release: Release) -> Iterator[Row]:
    """A job ends and its worker runs on, as Kubeflow leaves it by default: the operator deletes it after a minute, for what it holds."""
    release.install("job.enabled=false")
    gpus = min(1, *allocatable_gpus().values())
    resources = {"resources": {"limits": {GPU: gpus}}} if gpus else {}
    apply_plain(release, {}, "import time; time.sleep(20)", FOR_EVER, container=resources)
    with Story(release, PLAIN) as story:
        ended = story.wait_phase("Succeeded", TRAINS_SECONDS)
        running = ("pods", "-l", f"{JOB_LABEL}={PLAIN}", "--field-selector=status.phase=Running")
        until("the worker alone", KNOWN_SECONDS, lambda: [pod["metadata"]["name"] for pod in release.items(*running)] == [WORKER])
        yield Row("its job ends", "Succeeded, and the worker runs on", f"{story.words()}; {WORKER} runs on, with {gpus} GPU")
        until(
            "a worker that is gone",
            CLEANED_AFTER_SECONDS + KNOWN_SECONDS + GONE_SECONDS,
            lambda: not release.kubectl("get", "pod", WORKER, "--ignore-not-found"),
        )
        took = time.time() - ended.time
        told = [event["message"] for event in release.items("events", "--field-selector=reason=CleanedUp")]
        good = ledger_of(release, PLAIN) == ["Unknown CleanUp"] and len(told) == 1 and story.last.phase == "Succeeded"
        words = f"gone; {story.last.word}, {told}, ledger {ledger_of(release, PLAIN)}"
        yield Row("a minute later", "deleted, and told so, once", words, took, good and took >= CLEANED_AFTER_SECONDS)
