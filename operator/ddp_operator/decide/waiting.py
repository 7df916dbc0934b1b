"""What a run waits for: of all that holds its pods back, the most important reason, as a sentence that says which pod, why, and what to do.

The sentences hold no ages: they stay the same for as long as the wait is the same, so nothing is written meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ddp_operator.api.words import PendingReason
from ddp_operator.decide.classify import CONFIG_REASONS, IMAGE_REASONS, is_node_lost
from ddp_operator.decide.facts import ClaimFacts, JobFacts, PodFacts
from ddp_operator.decide.timing import has_ended_well, runs
from ddp_operator.decide.wording import cut

IMPORTANCE: tuple[PendingReason, ...] = (
    PendingReason.JOB_NOT_FOUND,
    PendingReason.IMAGE,
    PendingReason.CLAIM,
    PendingReason.QUOTA,
    PendingReason.NODE,
    PendingReason.UNSCHEDULABLE,
    PendingReason.QUEUED,
    PendingReason.CONTAINER,
    PendingReason.NO_PODS,
    PendingReason.INIT,
)
"""First what only a person can end, last what only follows from another pod: workers initialise until the master has a name."""

WHAT_TO_DO: Mapping[PendingReason, str] = {
    PendingReason.JOB_NOT_FOUND: "create the job, or delete the run",
    PendingReason.IMAGE: "check the image's name and tag, and the pull secret",
    PendingReason.CLAIM: "check the claim's name, storage class and access mode, and the node that its volume is on",
    PendingReason.QUOTA: "free some of the namespace's quota, or have it raised",
    PendingReason.NODE: "look at the node",
    PendingReason.UNSCHEDULABLE: "free or add what is missing, or ask for less",
    PendingReason.QUEUED: "wait for its turn, or look at the queue",
    PendingReason.CONTAINER: "look at the pod's events if this lasts",
    PendingReason.NO_PODS: "check that Kubeflow's training operator runs if this lasts",
    PendingReason.INIT: "look at the master's pod if this lasts",
}

ENDING = "it is ending"
"""The old pod is still there; nobody has to do anything."""
UNTAKEN_SECONDS = 60.0
"""A kubelet takes up a pod within seconds; one that has not said a word for so long does not run, or cannot reach the API server."""
PROVISIONING_SECONDS = 15.0
"""A pod whose claim is still pending, with no word from the scheduler, for so long waits for a volume that is being made."""
DETAIL_CHARS = 300
NAMED_REPLICAS = 4096
"""A job that wants more pods than this has its missing ones counted, not named."""

_OF_SCHEDULER: tuple[tuple[re.Pattern[str], PendingReason], ...] = (
    (
        re.compile(r"unbound immediate persistentvolumeclaim|persistentvolumeclaim \S+ (not found|is being deleted)", re.IGNORECASE),
        PendingReason.CLAIM,
    ),
    # a volume that only one node can reach, which takes no pods; with "Insufficient ..." it is there, and full
    (
        re.compile(r"\A(?!.*insufficient).*(persistentvolume's node affinity|volume node affinity conflict)", re.IGNORECASE),
        PendingReason.CLAIM,
    ),
    (re.compile(r"pod ?group|minmember|gang|queue", re.IGNORECASE), PendingReason.QUEUED),
)
"""What an unschedulable pod's message tells about the reason; anything else is a lack of room."""
_QUOTA = re.compile(r"exceeded quota", re.IGNORECASE)
_PREEMPTION_TAIL = re.compile(r"[.,]?\s*(preemption:|no new claims to deallocate).*", re.IGNORECASE | re.DOTALL)
"""The scheduler's second half says that nothing can be preempted: longer than the reason, and never the reason."""


@dataclass(frozen=True, slots=True)
class Wait:
    """One pod's reason. `replica` is empty where it is the job that waits."""

    reason: PendingReason
    replica: str
    detail: str


def waiting(job: JobFacts | None, pods: Sequence[PodFacts], claims: Sequence[ClaimFacts], now: float) -> tuple[PendingReason, str] | None:
    """The most important reason and its sentence; None if each wanted pod runs, or has ended.

    A job that is suspended without a queue waits for nobody but its user, so it has no reason either.
    """
    if job is None:
        return PendingReason.JOB_NOT_FOUND, f"the PyTorchJob does not exist; {WHAT_TO_DO[PendingReason.JOB_NOT_FOUND]}"
    if job.suspend:
        return (PendingReason.QUEUED, _queued(job)) if job.queue else None
    waits = [*_of_job(job), *_of_pods(job, pods, claims, now)]
    if not waits:
        return None
    first = min(waits, key=lambda wait: (IMPORTANCE.index(wait.reason), _natural(wait.replica)))
    return first.reason, _sentence(first, waits, job, pods)


def _queued(job: JobFacts) -> str:
    return cut(f"Kueue holds the job back in queue {job.queue}; {WHAT_TO_DO[PendingReason.QUEUED]}")


def _of_job(job: JobFacts) -> Iterator[Wait]:
    for status, _, message, _ in job.conditions.values():
        if status == "True" and _QUOTA.search(message):
            yield Wait(PendingReason.QUOTA, "", cut(message, DETAIL_CHARS))


def _of_pods(job: JobFacts, pods: Sequence[PodFacts], claims: Sequence[ClaimFacts], now: float) -> Iterator[Wait]:
    living = {pod.replica for pod in pods if not pod.deleted_at}
    for pod in pods:
        if pod.deleted_at and pod.replica in living:
            continue  # its successor speaks
        wait = _of_pod(pod, job, claims, now)
        if wait:
            yield wait
    for replica in missing_replicas(job, pods):
        yield Wait(PendingReason.NO_PODS, replica, "its pod is not made yet")


def missing_replicas(job: JobFacts, pods: Iterable[PodFacts]) -> list[str]:
    """Which pods nobody has made, or their successors: at most `NAMED_REPLICAS` of them."""
    there = {pod.replica for pod in pods}
    wanted = [f"{kind.lower()}-{i}" for kind, amount in sorted(job.replicas.items()) for i in range(min(max(amount, 0), NAMED_REPLICAS))]
    return [replica for replica in wanted[:NAMED_REPLICAS] if replica not in there]


def _of_pod(pod: PodFacts, job: JobFacts, claims: Sequence[ClaimFacts], now: float) -> Wait | None:
    found = _found(pod, job, claims, now)
    return Wait(found[0], pod.replica, found[1]) if found else None


def _found(pod: PodFacts, job: JobFacts, claims: Sequence[ClaimFacts], now: float) -> tuple[PendingReason, str] | None:
    if pod.phase == "Succeeded" or has_ended_well(pod) or (runs(pod) and not is_node_lost(pod)):
        return None
    return _leaves(pod, now) or _held_back(pod, job, claims) or _on_its_way(pod, job, claims, now)


def _leaves(pod: PodFacts, now: float) -> tuple[PendingReason, str] | None:
    """A pod that has to go before its successor can be made: the successor has its name."""
    if pod.phase == "Unknown" or (is_node_lost(pod) and pod.phase != "Failed"):
        return PendingReason.NODE, f"node {pod.node or '?'} does not answer"
    if pod.deleted_at:
        late = now > pod.deleted_at
        return (PendingReason.NODE, f"it does not end on node {pod.node or '?'}") if late else (PendingReason.NO_PODS, ENDING)
    if pod.phase == "Failed":
        return PendingReason.NO_PODS, "it has failed and is not replaced yet"
    return None


def _held_back(pod: PodFacts, job: JobFacts, claims: Sequence[ClaimFacts]) -> tuple[PendingReason, str] | None:
    """A pod for which somebody gives a reason."""
    if pod.waiting_reason in IMAGE_REASONS:
        return PendingReason.IMAGE, pod.waiting_message or pod.waiting_reason
    if pod.waiting_reason in CONFIG_REASONS:
        return PendingReason.CONTAINER, f"{pod.waiting_reason}: {pod.waiting_message}" if pod.waiting_message else pod.waiting_reason
    if pod.unscheduled_reason and not pod.node:
        return _unscheduled(pod)
    for claim in claims:
        if claim.name in job.claims and claim.phase == "Lost":
            return PendingReason.CLAIM, f"claim {claim.name} has lost its volume"
    return None


def _on_its_way(pod: PodFacts, job: JobFacts, claims: Sequence[ClaimFacts], now: float) -> tuple[PendingReason, str]:
    if not pod.node:
        return _unplaced(pod, job, claims, now)
    if pod.is_initialising:
        return PendingReason.INIT, pod.waiting_reason or "its init containers run"
    if pod.phase == "Pending" and not pod.waiting_reason and now - pod.created_at > UNTAKEN_SECONDS:
        return PendingReason.NODE, f"node {pod.node} has not taken it up"
    return PendingReason.CONTAINER, pod.waiting_reason or "its container is being made"


def _unscheduled(pod: PodFacts) -> tuple[PendingReason, str]:
    if pod.unscheduled_reason == "SchedulingGated":
        return PendingReason.QUEUED, "its scheduling is gated" + (f": {pod.unscheduled_message}" if pod.unscheduled_message else "")
    detail = _PREEMPTION_TAIL.sub("", pod.unscheduled_message).strip() or pod.unscheduled_reason
    reason = next((reason for pattern, reason in _OF_SCHEDULER if pattern.search(detail)), PendingReason.UNSCHEDULABLE)
    return reason, detail


def _unplaced(pod: PodFacts, job: JobFacts, claims: Sequence[ClaimFacts], now: float) -> tuple[PendingReason, str]:
    """No node, and no word from the scheduler: it has just been made, or its volume is being made."""
    if now - pod.created_at > PROVISIONING_SECONDS:
        for claim in claims:
            if claim.name in job.claims and claim.phase == "Pending":
                return PendingReason.CLAIM, f"the volume of claim {claim.name} is being made" + (
                    f": {claim.message}" if claim.message else ""
                )
    return PendingReason.CONTAINER, "it is being scheduled"


def _sentence(first: Wait, waits: Sequence[Wait], job: JobFacts, pods: Sequence[PodFacts]) -> str:
    detail = cut(first.detail, DETAIL_CHARS).rstrip(".;")
    if not first.replica:
        return cut(f"{detail}; {WHAT_TO_DO[first.reason]}")
    same = len({wait.replica for wait in waits if wait.reason is first.reason})
    desired = max(job.desired, len({pod.replica for pod in pods}))
    if first.reason is PendingReason.NO_PODS and not pods:
        return cut(f"none of {desired} pods is made yet; {WHAT_TO_DO[first.reason]}")
    told = f"{same} of {desired} pods wait: {first.replica}: {detail}"
    return cut(told if detail == ENDING else f"{told}; {WHAT_TO_DO[first.reason]}")


def _natural(replica: str) -> tuple[str, int, str]:
    """worker-2 before worker-10."""
    kind, _, index = replica.rpartition("-")
    return kind, int(index) if index.isascii() and index.isdigit() and len(index) < 7 else -1, replica  # noqa: PLR2004 (digits)
