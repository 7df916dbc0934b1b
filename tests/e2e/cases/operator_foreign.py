"""A job of somebody else's: upstream's own example is adopted and loses a pod, or is half dead with nobody to replace the dead half."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from cluster import kubectl, until
from kernel import kill
from release import JOB_LABEL, Release
from table import Row

from cases.operator_jobs import CLAIM, EXAMPLE, apply_example
from cases.operator_steps import KNOWN_SECONDS, TRAINS_SECONDS, Look, Story, generation, ledger_of, set_policy, status_of, suspended

LONG = 1000
"""Epochs that no case waits for; one takes half a minute."""
HUNG_AFTER_SECONDS = 30
WHOLE_STORY = r"(?:(?:Pending \(\w+\))? -> )+Running -> Restarting \(PodDeleted\) -> Running -> Succeeded"


def adopted(release: Release) -> Iterator[Row]:
    """job.enabled=false installs the operator alone; upstream's example, labelled, is adopted, loses a worker, ends, and goes alone."""
    release.install("job.enabled=false")
    apply_example(release, epochs=1)
    started = time.time()
    until("a TrainingRun", KNOWN_SECONDS, lambda: release.kubectl("get", "trainingrun", EXAMPLE, check=False).startswith("NAME"))
    with Story(release, EXAMPLE) as story:
        look = _trains(release, story)
        status = status_of(release, EXAMPLE)
        claims = {claim["name"]: claim["phase"] for claim in status.get("claims", [])}
        good = "progress" not in status and claims == {CLAIM: "Bound"}
        yield Row(
            "upstream's example",
            "Running, progress unknown, its claim",
            f"{look.word}: {look.message}; {claims}",
            look.time - started,
            good,
        )
        at = time.time()
        release.kubectl("delete", "pod", f"{EXAMPLE}-worker-0", "--grace-period=3", "--wait=false")
        lost = story.wait_phase("Restarting", KNOWN_SECONDS, since=at)
        yield Row(
            "its worker is deleted", "Restarting (PodDeleted)", f"{lost.word}: {lost.message}", lost.time - at, lost.reason == "PodDeleted"
        )
        look = story.wait_phase("Succeeded", 2 * TRAINS_SECONDS, since=at)
        good = re.fullmatch(WHOLE_STORY, story.words()) is not None
        yield Row("its end", "Running, Succeeded; each cause the true one", story.words(), look.time - started, good)
        status, ledger = status_of(release, EXAMPLE), ledger_of(release, EXAMPLE)
        restarts = status["restarts"]
        changes = generation(release, EXAMPLE)
        good = ledger == ["PodDeleted"] and (restarts["preemptions"], restarts["failures"]) == (1, 0) and changes == 1
        words = f"ledger {ledger}, {restarts['preemptions']} preemptions, {restarts['failures']} failures, generation {changes}"
        yield Row("what the operator did", "one entry, nothing done to the job", words, good=good)
    at = time.time()
    release.kubectl("delete", "pytorchjob", EXAMPLE)
    until("no TrainingRun", KNOWN_SECONDS, lambda: not release.items("trainingruns"))
    yield Row("the job is deleted", "its TrainingRun goes with it", "gone", time.time() - at)


def half_dead(release: Release) -> Iterator[Row]:
    """A worker dies while the training operator is away, and its master waits for it: all pods are started again, once."""
    release.install("job.enabled=false")
    apply_example(release, epochs=LONG, worker_policy="ExitCode")
    with Story(release, EXAMPLE) as story:
        look = _trains(release, story)
        yield Row("before", "Running", story.words())
        set_policy(release, EXAMPLE, hungAfter=f"{HUNG_AFTER_SECONDS}s")
        old = _pods(release)
        release.afterwards.append(lambda: _training_operators(1))
        _training_operators(0)
        at = time.time()
        kill(
            next(pod for pod in release.items("pods", "-l", f"{JOB_LABEL}={EXAMPLE}") if pod["metadata"]["name"].endswith("worker-0")),
            "mnist.py",
        )
        lost = story.wait_phase("Restarting", KNOWN_SECONDS, since=at)
        yield Row(
            "a worker dies, nobody replaces it",
            "Restarting (Crash)",
            f"{lost.word}: {lost.message}",
            lost.time - at,
            lost.reason == "Crash",
        )
        until("a restart that is meant", HUNG_AFTER_SECONDS + 2 * KNOWN_SECONDS, lambda: "intent" in status_of(release, EXAMPLE))
        meant = time.time()
        _training_operators(1)
        until("a restart that is done", TRAINS_SECONDS, lambda: status_of(release, EXAMPLE)["restarts"]["byOperator"])
        look = story.wait_phase("Running", TRAINS_SECONDS, since=meant)
        _trained(release)
        ledger, restarts = ledger_of(release, EXAMPLE), status_of(release, EXAMPLE)["restarts"]
        good = len(ledger) == restarts["byOperator"] == 1 and ledger[0].endswith("GangRestart") and not suspended(release, EXAMPLE)
        good = good and not old & _pods(release)
        words = f"meant after {meant - at:.0f} s; {story.words(at)}; ledger {ledger}, {len(old & _pods(release))} of the old pods"
        yield Row(f"hungAfter {HUNG_AFTER_SECONDS} s later", "all pods start again, once, and train", words, look.time - at, good)


def _trains(release: Release, story: Story) -> Look:
    look = story.wait_phase("Running", TRAINS_SECONDS)
    _trained(release)
    return look


def _trained(release: Release) -> None:
    """By the log of the master as it is now: its pods run some time before they meet."""
    until("a loss in its log", TRAINS_SECONDS, lambda: "loss=" in release.kubectl("logs", f"{EXAMPLE}-master-0"), pause=1)


def _pods(release: Release) -> set[str]:
    return {pod["metadata"]["uid"] for pod in release.items("pods", "-l", f"{JOB_LABEL}={EXAMPLE}")}


def _training_operators(count: int) -> None:
    """Until so many are there: none that runs, or one that takes jobs."""
    kubectl("-n", "kubeflow", "scale", "deployment/training-operator", f"--replicas={count}")
    if count:
        kubectl("-n", "kubeflow", "rollout", "status", "deployment/training-operator", "--timeout=120s", timeout=140)
    else:
        kubectl("-n", "kubeflow", "wait", "--for=delete", "pod", "-l", "control-plane=kubeflow-training-operator", "--timeout=60s")
