"""Where the operator ends a run by its own bounds: pods that fail again and again, and pods that are never scheduled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster import OPERATOR_IMAGE, until
from release import JOB_LABEL, Release
from table import Row

from cases.operator_installs import foreign_job
from cases.operator_steps import KNOWN_SECONDS, TRAINS_SECONDS, Story, status_of

CRASHED = 160
MAX_RESTARTS = 2
PENDING_SECONDS = 30
TOO_LARGE = "1000"
"""CPUs that no node has."""
SUSPENDED = ("get", "pytorchjob", "bounded", "-o", "jsonpath={.spec.runPolicy.suspend}")


def budget(release: Release) -> Iterator[Row]:
    """Pods that fail with 160 again and again end the run when maxRestarts is used up, with a ledger that says what happened."""
    release.install("job.enabled=false")
    _begin(release, f"import sys, time; time.sleep(3); sys.exit({CRASHED})", {}, {"maxRestarts": MAX_RESTARTS, "noProgressRestarts": 0})
    with Story(release, "bounded") as story:
        look = story.wait_phase("Failed", 2 * TRAINS_SECONDS)
        status = status_of(release, "bounded")
        failures = status["restarts"]["failures"]
        until("a job that is paused", KNOWN_SECONDS, lambda: release.kubectl(*SUSPENDED) == "true")  # told first, then done
        good = look.reason == "RestartBudgetUsedUp" and failures == MAX_RESTARTS + 1
        entries = [f"{entry['cause']} {entry.get('exitCode', '')}".strip() for entry in status["ledger"]]
        words = f"{look.word}: {look.message[:200]}; {failures} failures, ledger {entries}"
        yield Row(
            f"exit {CRASHED} for ever, maxRestarts {MAX_RESTARTS}", f"Failed at failure {MAX_RESTARTS + 1}, suspended", words, good=good
        )


def pending(release: Release) -> Iterator[Row]:
    """A job that no node has room for ends when its pending deadline is over, with the scheduler's own words."""
    release.install("job.enabled=false")
    resources = {"resources": {"requests": {"cpu": TOO_LARGE}}}
    _begin(release, "pass", resources, {"pendingDeadline": f"{PENDING_SECONDS}s"})
    with Story(release, "bounded") as story:
        look = story.wait("Pending (Unschedulable)", TRAINS_SECONDS, lambda look: look.reason == "Unschedulable")
        yield Row("it asks for too much", "Pending (Unschedulable), in the scheduler's words", f"{look.word}: {look.message[:200]}")
        look = story.wait_phase("Failed", PENDING_SECONDS + TRAINS_SECONDS)
        said = look.message + " ".join(entry.get("message", "") for entry in status_of(release, "bounded")["ledger"])
        left = release.items("pods", "-l", f"{JOB_LABEL}=bounded")
        good = look.reason == "PendingDeadlineExceeded" and "Insufficient cpu" in said
        words = f"{look.word}: {look.message[:400]}; {len(left)} pods"
        yield Row(f"pendingDeadline {PENDING_SECONDS} s", "Failed (PendingDeadlineExceeded), in the scheduler's words", words, good=good)


def _begin(release: Release, script: str, more: dict[str, Any], policy: dict[str, Any]) -> None:
    """A job of one pod that is not the chart's, and its TrainingRun."""
    job = foreign_job()
    container = {"name": "pytorch", "image": OPERATOR_IMAGE, "command": ["python", "-c", script], **more}
    replica = {"replicas": 1, "restartPolicy": "ExitCode", "template": {"spec": {"containers": [container]}}}
    job["metadata"] = {"name": "bounded"}
    job["spec"] = {"pytorchReplicaSpecs": {"Master": replica}}
    run = {"apiVersion": "ddp-operator.io/v1alpha1", "kind": "TrainingRun", "metadata": {"name": "bounded"}}
    release.apply({**run, "spec": {"jobRef": {"name": "bounded"}, "policy": policy}})
    release.apply(job)
