"""Freeing pods whose node does not answer, or that do not end: their names stay taken, and nobody replaces them before they are gone.

Such a pod is deleted without grace, although its node may still run it: the trainer's attempt number keeps an old writer off the run's
directory. Only after `nodeLostAfter`, which is to be longer than a node's reboot takes to be forgiven.
"""

from __future__ import annotations

from collections.abc import Mapping

from ddp_operator.api.trainingrun import LedgerEntry, Policy, TrainingRunStatus
from ddp_operator.api.words import Act, Cause, EventReason, Phase
from ddp_operator.decide.announce import fact
from ddp_operator.decide.classify import Loss, classify, is_node_lost
from ddp_operator.decide.decision import DeletePod, Event
from ddp_operator.decide.durations import seconds
from ddp_operator.decide.facts import PodFacts, RunFacts
from ddp_operator.decide.incarnations import DONE, FREED, LEFT, LOST, by_replica, has_mark, marked
from ddp_operator.decide.incidents import appended, joined, with_losses
from ddp_operator.decide.step import Step
from ddp_operator.decide.wording import LEDGER_CHARS, cut, moment


def proceed(facts: RunFacts, phase: Phase, now: float) -> Step:
    """Free the pods that are stuck; told and counted once, asked for until they are gone."""
    del phase
    memory, policy = facts.status, facts.spec.policy
    if policy.on_node_lost != "FreePods":
        return Step(memory)
    freed = stuck(tuple(by_replica(facts.pods).values()), policy, now)
    if not freed:
        return Step(memory)
    actions = tuple(DeletePod(pod.name, pod.uid, 0, _why(pod, policy)) for pod in freed)
    words = marked(memory.incarnations, freed, FREED)
    new = [pod for pod in freed if has_mark(words, pod, FREED) and not has_mark(memory.incarnations, pod, FREED)]
    is_told = memory.incident is not None and memory.ledger[-1].action is Act.FREE_PODS
    if new or not is_told:  # so many are freed that not each can be remembered: those are told with the others, once for an incident
        new += [pod for pod in freed if not has_mark(words, pod, FREED)]
    if not new:
        return Step(memory, actions)
    losses = {pod.replica: Loss(_cause(pod), None, _why(pod, policy), pod.name, pod.node, now, 0, is_explained=True) for pod in new}
    known = {pod.replica for pod in new if any(has_mark(memory.incarnations, pod, mark) for mark in (LOST, LEFT, DONE))}
    explained = {replica: loss for replica, loss in losses.items() if replica in known}
    counted = {replica: loss for replica, loss in losses.items() if replica not in known}
    if explained:
        memory = _explained(memory, explained, now)
    if counted:
        memory = with_losses(facts, memory, counted, now, Act.FREE_PODS)
    memory = memory.model_copy(update={"incarnations": words})
    return Step(memory, actions, tuple(_told(pod, memory.ledger[-1], policy) for pod in new))


def stuck(pods: tuple[PodFacts, ...], policy: Policy, now: float) -> list[PodFacts]:
    """Pods that do not end although their time is over, and pods whose node is lost."""
    return [pod for pod in pods if stuck_at(pod, policy) < now]


def stuck_at(pod: PodFacts, policy: Policy) -> float:
    """From when on it counts as stuck; infinity for a pod that is well, or at its end."""
    bound = seconds(policy.node_lost_after)
    if pod.deleted_at > 0:
        return pod.deleted_at + bound
    if pod.phase in {"Running", "Unknown"} and pod.unready_since > 0 and is_node_lost(pod):
        return pod.unready_since + bound
    return float("inf")


def _explained(memory: TrainingRunStatus, losses: Mapping[str, Loss], now: float) -> TrainingRunStatus:
    """Pods whose leaving is already accounted for: nothing is counted again, only the cause is known now."""
    if memory.incident is not None:
        return joined(memory, losses, now, Act.FREE_PODS)
    first = next(iter(losses.values()))
    entry = LedgerEntry(
        at=moment(now),
        cause=first.cause,
        pod=cut(first.pod, 253),
        node=cut(first.node, 253),
        action=Act.FREE_PODS,
        recovered_at=moment(now),
    )
    return appended(memory, entry.model_copy(update={"message": cut(first.message, LEDGER_CHARS), "lost_steps": 0}))


def _told(pod: PodFacts, entry: LedgerEntry, policy: Policy) -> Event:
    told = cut(f"{pod.name}: {_why(pod, policy)}.")
    return Event(EventReason.PODS_FREED, told, is_warning=True, fact=fact(entry.action, entry.at, pod.name))


def _cause(pod: PodFacts) -> Cause:
    """The node's loss, only if somebody says so; else why it had to leave."""
    return Cause.NODE_LOST if is_node_lost(pod) else classify(pod, pod.ended).cause


def _why(pod: PodFacts, policy: Policy) -> str:
    node, bound = pod.node or "?", policy.node_lost_after
    if pod.deleted_at <= 0:
        return f"its node {node} has not answered for {bound}"
    late = f"it did not end within {bound} after its grace period"
    if is_node_lost(pod):
        return f"{late}, and its node {node} does not answer"
    return f"{late}, though nobody says that its node {node} is lost: look for finalizers, and for a volume that does not answer"
