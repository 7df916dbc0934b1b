"""Pods that run on after the end of their job hold GPUs: PyTorchJob v1 leaves them by default (cleanPodPolicy None)."""

from __future__ import annotations

from ddp_operator.api.trainingrun import LedgerEntry
from ddp_operator.api.words import FINAL_PHASES, Act, Cause, EventReason, Phase
from ddp_operator.decide.announce import fact
from ddp_operator.decide.decision import DeletePod, Event
from ddp_operator.decide.facts import PodFacts, RunFacts
from ddp_operator.decide.incarnations import FREED, by_replica, has_mark, marked
from ddp_operator.decide.incidents import appended
from ddp_operator.decide.step import Step
from ddp_operator.decide.timing import epoch, is_finished
from ddp_operator.decide.wording import LEDGER_CHARS, cut, moment

GRACE_SECONDS = 60.0
"""Workers leave some seconds after the master; a minute is plenty, and no GPU is held for long."""


def proceed(facts: RunFacts, phase: Phase, now: float) -> Step:
    """Delete what still runs a minute after the end; told once, asked for until the pods are told to leave."""
    memory, job = facts.status, facts.job
    assert job is not None
    ended_at = epoch(memory.timing.finished_at)
    # Only the job's own final word counts: pods of a job that is not at its end would be made again.
    if not is_finished(job) or phase not in FINAL_PHASES or not ended_at or now < ended_at + GRACE_SECONDS:
        return Step(memory)
    if facts.spec.policy.on_finished != "CleanUp" or job.clean_pod_policy not in {"None", ""}:
        return Step(memory)
    left = [pod for pod in by_replica(facts.pods).values() if holds(pod)]
    if not left:
        return Step(memory)
    why = "its job has ended, and it ran on"
    actions = tuple(DeletePod(pod.name, pod.uid, None, why) for pod in left)
    words = marked(memory.incarnations, left, FREED)
    new = [pod for pod in left if has_mark(words, pod, FREED) and not has_mark(memory.incarnations, pod, FREED)]
    is_told = bool(memory.ledger) and memory.ledger[-1].action is Act.CLEAN_UP
    if new or not is_told:  # more than can be remembered: told with the others, or once
        new += [pod for pod in left if not has_mark(words, pod, FREED)]
    if not new:
        return Step(memory, actions)
    message = f"{len(new)} pods ran on after the end of the job and were deleted: {', '.join(pod.name for pod in new)}"
    entry = LedgerEntry(
        at=moment(now), cause=Cause.UNKNOWN, pod=cut(new[0].name, 253), node=cut(new[0].node, 253), action=Act.CLEAN_UP
    ).model_copy(update={"message": cut(message, LEDGER_CHARS), "recovered_at": moment(now), "lost_steps": 0})
    memory = appended(memory, entry).model_copy(update={"incarnations": words})
    return Step(memory, actions, (Event(EventReason.CLEANED_UP, cut(message + "."), fact=fact(entry.action, entry.at, entry.pod)),))


def holds(pod: PodFacts) -> bool:
    """Whether it still holds what it was given, and nobody has told it to leave."""
    return pod.phase in {"Running", "Pending"} and not pod.deleted_at
