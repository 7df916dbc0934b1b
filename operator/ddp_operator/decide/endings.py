"""Whether a job is over by its pods, and why it failed: what was lost and can still be seen, and what the ledger remembers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ddp_operator.api.words import Cause
from ddp_operator.decide.classify import FIRST_SIGNAL_CODE, Loss, classify, is_node_lost, root_cause
from ddp_operator.decide.facts import JobFacts, PodFacts, RunFacts
from ddp_operator.decide.timing import epoch

DEADLINE_WORDS = "longer than specified deadline"
"""In the message with which Kubeflow v1 fails a job for its own activeDeadlineSeconds: the one end that no pod can explain."""


def is_true(job: JobFacts, condition: str) -> bool:
    """Whether the job has this condition. Only for Succeeded and Failed, which v1 never takes back."""
    return job.conditions.get(condition, ("",))[0] == "True"


def pods_succeeded(job: JobFacts, pods: Mapping[str, PodFacts]) -> bool:
    """As the training operator judges: the master's end; without one all workers', and of an elastic job any worker's."""
    if job.has_master:
        return _ended_well(pods.get("master-0"), job)
    workers = [_ended_well(pod, job) for replica, pod in pods.items() if replica.startswith("worker-")]
    wanted = max(job.replicas.get("Worker", 0), 1)
    return any(workers) if job.is_elastic else sum(workers) >= wanted


def _ended_well(pod: PodFacts | None, job: JobFacts) -> bool:
    if pod is None or pod.deleted_at or _policy(pod, job) == "Always":
        return False  # a program that is told to leave may exit with 0 too
    return pod.phase == "Succeeded" or (pod.phase == "Running" and pod.ended is not None and pod.ended.exit_code == 0)


def is_fatal(pod: PodFacts, job: JobFacts) -> bool:
    """Whether Kubeflow will fail the job for this pod: exit codes 1-127 under ExitCode, any failed pod under Never."""
    if pod.phase != "Failed" or pod.deleted_at:
        return False
    policy, code = _policy(pod, job), pod.ended.exit_code if pod.ended else FIRST_SIGNAL_CODE
    return policy == "Never" or (policy == "ExitCode" and 0 < code < FIRST_SIGNAL_CODE)


def _policy(pod: PodFacts, job: JobFacts) -> str:
    return job.restart_policy.get(pod.replica.partition("-")[0].capitalize(), "")


def visible_losses(pods: Iterable[PodFacts]) -> Iterator[tuple[PodFacts, Loss]]:
    """Pods that are lost, or about to be, with the cause of each."""
    for pod in pods:
        if pod.ended is not None and (pod.ended.exit_code != 0 or pod.deleted_at):
            yield pod, classify(pod, pod.ended)
        elif pod.waiting_reason == "CrashLoopBackOff" and pod.ended_before is not None:
            yield pod, classify(pod, pod.ended_before)
        elif pod.phase == "Failed" or pod.deleted_at or (is_node_lost(pod) and pod.phase == "Running"):
            yield pod, classify(pod, None)


def why_failed(job: JobFacts, pods: Mapping[str, PodFacts], facts: RunFacts, lost: Loss | None) -> Loss | None:
    """The root cause of a job's failure; None if nobody knows any more. Deletions explain nothing: pods go because the job is over."""
    _, reason, message, _ = job.conditions.get("Failed", ("", "", "", 0.0))
    if DEADLINE_WORDS in message or DEADLINE_WORDS in reason:
        over = "the job ran longer than its activeDeadlineSeconds"
        return Loss(Cause.DEADLINE_EXCEEDED, None, over, job.name, "", 0.0, 0, is_explained=True)
    ends = [loss for _, loss in visible_losses(pods.values()) if loss.cause is not Cause.POD_DELETED]
    remembered = lost or newest_entry(facts)
    # An entry from before these pods were made (the run was paused in the middle of an incident) has nothing to do with their end.
    if remembered and (lost or not pods or remembered.at >= min(pod.created_at for pod in pods.values())):
        ends.append(remembered)
    return root_cause(ends) if ends else None


def newest_entry(facts: RunFacts) -> Loss | None:
    """The ledger's last word, unless the run has recovered from that."""
    entry = facts.status.ledger[-1] if facts.status.ledger else None
    if entry is None or entry.recovered_at is not None:
        return None
    return Loss(entry.cause, entry.exit_code, entry.message, entry.pod, entry.node, epoch(entry.at), entry.step, is_explained=True)
