"""What the operator does to a run, and what it leaves alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from cluster import CaseError, in_node, until
from release import JOB_LABEL, Release
from table import Row

from cases.operator_steps import KNOWN_SECONDS, TRAINS_SECONDS, Story, status_of, suspend, suspended, trains
from cases.steps import GONE_SECONDS

LEFT_ALONE_SECONDS = 20.0
"""The operator looks several times meanwhile."""
DEADLINE_SECONDS = 60
HUNG_AFTER_SECONDS = 30


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
        patch = f'{{"spec":{{"policy":{{"hungAfter":"{HUNG_AFTER_SECONDS}s"}}}}}}'
        release.kubectl("patch", "trainingrun", release.name, "--type=merge", "-p", patch)
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


def freeze(pod: dict[str, Any]) -> None:
    """By the node's kernel: process 1 of a container does not hear a SIGSTOP from inside."""
    name, node, uid = pod["metadata"]["name"], pod["spec"]["nodeName"], pod["metadata"]["uid"].replace("-", "_")
    script = f"f=$(find /sys/fs/cgroup -type d -name '*{uid}*' | head -1)/cgroup.freeze; echo 1 > $f && cat $f"
    if in_node(node, script).strip() != "1":
        raise CaseError(f"pod {name} could not be frozen")
