"""The gang restart: all pods at once, which PyTorchJob v1 does not know. In steps, each of which a successor can find and finish.

1. The intent stands in our status, with the job's generation. 2. The job is paused, if it still has that generation. 3. When it is paused,
by us, and its pods are gone, it is resumed. 4. When it is resumed, the intent is taken back. If anybody else has changed the job in
between, the intent is dropped and nothing is touched: a user's own pause is never undone. A job of Kueue is never paused by us: its pods
are deleted, and the intent ends with the last old one. A pod that will not go is waited for no longer than `patience_ends_at`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ddp_operator.api.trainingrun import Intent, Policy, TrainingRunStatus
from ddp_operator.api.words import FINAL_PHASES, Act, Cause, EventReason, Phase
from ddp_operator.decide import budgets, nodes, silence
from ddp_operator.decide.announce import fact
from ddp_operator.decide.classify import Loss
from ddp_operator.decide.decision import FIELD_MANAGER, Action, DeletePod, Event, ResumeJob, SuspendJob
from ddp_operator.decide.durations import seconds, spoken
from ddp_operator.decide.facts import JobFacts, PodFacts, RunFacts
from ddp_operator.decide.incarnations import LEFT, has_mark, marked
from ddp_operator.decide.incidents import opened
from ddp_operator.decide.lives import uid_of
from ddp_operator.decide.step import Step
from ddp_operator.decide.timing import epoch, is_finished, runs, sane
from ddp_operator.decide.wording import count, cut, moment

LEAVE_SECONDS = 60.0
"""A paused job's pods are told to leave within moments. If they are not, the training operator is away, and we tell them."""
NEVER_LEAVES_SECONDS = 300.0
"""So long after its grace and `nodeLostAfter`, a pod will not go (a finalizer, a refused deletion): nobody waits for it any more."""
NAMED = 8
"""Pods that one event names."""


def finish(facts: RunFacts, phase: Phase, now: float) -> Step:
    """Carry on an intent that stands; nothing else may act meanwhile."""
    del phase
    memory, job = facts.status, facts.job
    assert job is not None
    intent = memory.intent
    if intent is None:
        return Step(memory)
    if is_finished(job) or intent.job_uid != uid_of(job):
        return _dropped(memory, "the job has ended")
    if job.queue:
        return _delete_pods(facts, now)
    ahead = job.generation - intent.from_generation
    if not job.suspend:
        if ahead == 0:
            return Step(memory, (_pause(job, intent),), waits=True)
        # A pause and its end are two changes; somebody's edit in between is one more, and its pods have left all the same.
        was_paused = ahead >= 2 and not _all_stay(facts)  # noqa: PLR2004
        return _done(memory) if was_paused else _dropped(memory, "somebody else has changed the job")
    if not _is_our_pause(job, ahead):
        return _dropped(memory, "somebody else has paused the job")
    waiting_for = _not_gone(facts.pods, facts.spec.policy, now)
    if waiting_for and now <= patience_ends_at(facts, waiting_for):
        return Step(memory, _hurry(facts, waiting_for, now), waits=True)
    why = f"its pods are gone: it starts again ({intent.cause})"
    return Step(memory, (ResumeJob(job.name, job.uid, job.generation, why),), _left_behind(waiting_for), waits=True)


def open_(facts: RunFacts, phase: Phase, now: float) -> Step:
    """Begin a gang restart, if the run hangs and its policy says so."""
    memory, job, policy = facts.status, facts.job, facts.spec.policy
    assert job is not None
    idle = job.suspend or is_finished(job) or memory.stopped_by_us is not None or memory.intent is not None
    if idle or phase in FINAL_PHASES or policy.on_hung != "Restart" or not facts.pods:
        return Step(memory)
    why = _why(facts, phase, now)
    if why is None:
        return Step(memory)
    if memory.incident is None or (phase is Phase.HUNG and not _was_given_up(facts)):
        replicas = {pod.replica or pod.name: pod for pod in facts.pods}
        losses = {
            cut(replica, 64): Loss(Cause.HANG, None, why, pod.name, pod.node, now, memory.timing.last_progress_step, is_explained=True)
            for replica, pod in replicas.items()
        }
        memory = opened(facts, memory, losses, now)
        if budgets.spent(memory, policy) is not None and policy.on_budget == "Stop" and not job.queue:
            return Step(memory, waits=True)  # the next look stops it instead
    cause = memory.ledger[-1].cause
    entry = memory.ledger[-1].model_copy(update={"action": Act.GANG_RESTART})
    intent = Intent(
        action=Act.GANG_RESTART,
        cause=cause,
        started_at=moment(now),
        job_uid=uid_of(job),
        from_generation=count(job.generation),
    )
    memory = memory.model_copy(
        update={
            "intent": intent,
            "ledger": [*memory.ledger[:-1], entry],
            "incarnations": marked(memory.incarnations, facts.pods, LEFT),
        }
    )
    told = cut(f"All {len(facts.pods)} pods are started again: {why}.")
    event = Event(EventReason.GANG_RESTART, told, is_warning=True, fact=fact(intent.action, intent.started_at))
    if job.queue:
        return Step(memory, _deletions(facts.pods), (event,), waits=True)
    return Step(memory, (_pause(job, intent),), (event,), waits=True)


def _why(facts: RunFacts, phase: Phase, now: float) -> str | None:
    """Why all pods have to start again; None: they have not. A restart of ours gets the whole bound before it may be called a hang."""
    policy, incident = facts.spec.policy, facts.status.incident
    bound = seconds(policy.hung_after)
    is_restarted = incident is not None and facts.status.ledger[-1].action is Act.GANG_RESTART
    if incident is not None and is_restarted and now - (epoch(incident.gathered_at) or now) < bound:
        return None
    if not silence.is_its_own(facts, now):
        return None
    if phase is Phase.HUNG:
        if facts.progress.asked_at <= 0:
            return None  # the word of an operator before this one, which may have had no network: let it ask first
        return f"no sign of training for longer than hungAfter {policy.hung_after}, while all pods run"
    return _half_dead(facts, now, bound)


def _half_dead(facts: RunFacts, now: float, bound_seconds: float) -> str | None:
    """Some pods have failed for good, or ended, and the others run on without a sign of training: nobody replaces the dead ones."""
    ended = [pod for pod in facts.pods if pod.phase in {"Failed", "Succeeded"} and not pod.deleted_at]
    alive = [pod for pod in facts.pods if runs(pod)]
    if not ended or not alive:
        return None
    look, incident, lead = facts.progress, facts.status.incident, silence.lead_of(facts)
    if look.heard_at <= 0 and all(pod.phase == "Succeeded" for pod in ended):
        return None  # workers of a foreign program may well end before their master
    ended_at = max(pod.ended.finished_at if pod.ended else 0.0 for pod in ended)
    # where nobody was heard: since the loss was seen, on our clock, which may not be the kubelet's
    since = max(ended_at, look.heard_at or (epoch(incident.opened_at) if incident else 0.0))
    until = now
    if lead is not None and runs(lead) and lead.progress_port:
        if look.asked_at <= 0:
            return None  # this operator has not asked yet: the silence since its predecessor's last look is its own
        until = sane(look.asked_at, now)  # as for a hang: a clock that was just set ahead is no silence
        if look.error:
            since = max(since, look.unanswered_since or look.asked_at)  # and one question without an answer is none either
    if not 0 < since < until - bound_seconds:
        return None
    return f"{len(ended)} of {len(facts.pods)} pods have ended, and the others have run on for {spoken(bound_seconds)} without training"


def _is_our_pause(job: JobFacts, ahead: int) -> bool:
    if job.suspend_manager:
        return ahead >= 1 and job.suspend_manager == FIELD_MANAGER
    return ahead == 1


def _not_gone(pods: tuple[PodFacts, ...], policy: Policy, now: float) -> list[PodFacts]:
    """Pods whose end is awaited. Where pods may not be freed, the wait for a stuck one is over when it counts as stuck."""
    stuck = nodes.stuck(pods, policy, now) if policy.on_node_lost != "FreePods" else []
    return [pod for pod in pods if pod not in stuck]


def patience_ends_at(facts: RunFacts, pods: Sequence[PodFacts]) -> float:
    """Until when the restart that stands waits for these pods; then it goes on without their end."""
    memory = facts.status
    begun_at = max(epoch(memory.intent.started_at) if memory.intent else 0.0, epoch(memory.timing.suspended_at))
    grace = max((pod.grace_seconds for pod in pods), default=0.0)
    return begun_at + grace + seconds(facts.spec.policy.node_lost_after) + NEVER_LEAVES_SECONDS


def _left_behind(pods: Sequence[PodFacts]) -> tuple[Event, ...]:
    if not pods:
        return ()
    names = ", ".join(pod.name for pod in pods[:NAMED])
    more = f" and {len(pods) - NAMED} more" if len(pods) > NAMED else ""
    why = "look for finalizers, and whether the operator may delete pods; until then nobody takes its place"
    return (Event(EventReason.GANG_RESTART, cut(f"The restart goes on although {names}{more} did not go: {why}."), is_warning=True),)


def _all_stay(facts: RunFacts) -> bool:
    """Whether all pods are those of before, and run: no pause has reached them."""
    return bool(facts.pods) and all(runs(pod) and has_mark(facts.status.incarnations, pod, LEFT) for pod in facts.pods)


def _was_given_up(facts: RunFacts) -> bool:
    """Whether the open incident is a hang of these same pods whose restart has not come about: one silence is not counted twice."""
    memory = facts.status
    if memory.incident is None or memory.ledger[-1].cause is not Cause.HANG or memory.ledger[-1].action is not Act.NONE:
        return False
    return epoch(memory.incident.opened_at) >= max((pod.started_at for pod in facts.pods), default=0.0)


def _hurry(facts: RunFacts, pods: list[PodFacts], now: float) -> tuple[Action, ...]:
    paused_at = epoch(facts.status.timing.suspended_at)
    stuck = {pod.uid for pod in nodes.stuck(tuple(pods), facts.spec.policy, now) if pod.deleted_at}
    actions: list[Action] = []
    for pod in pods:
        if pod.uid in stuck:
            actions.append(DeletePod(pod.name, pod.uid, 0, "the job is paused for a restart, and it did not end"))
        elif not pod.deleted_at and paused_at and now - paused_at > LEAVE_SECONDS:
            actions.append(DeletePod(pod.name, pod.uid, None, "the job is paused for a restart, and nobody told it to leave"))
    return tuple(actions)


def _delete_pods(facts: RunFacts, now: float) -> Step:
    memory, policy = facts.status, facts.spec.policy
    old = [pod for pod in facts.pods if has_mark(memory.incarnations, pod, LEFT)]
    waiting_for = _not_gone(tuple(old), policy, now)
    if not waiting_for or now > patience_ends_at(facts, waiting_for):
        return replace(_done(memory), events=_left_behind(waiting_for))
    stuck = [pod for pod in nodes.stuck(tuple(old), policy, now) if pod.deleted_at and policy.on_node_lost == "FreePods"]
    freed = tuple(DeletePod(pod.name, pod.uid, 0, "it did not end when all pods were to start again") for pod in stuck)
    return Step(memory, (*_deletions(old), *freed), waits=True)


def _deletions(pods: tuple[PodFacts, ...] | list[PodFacts]) -> tuple[Action, ...]:
    return tuple(DeletePod(pod.name, pod.uid, None, "all pods are started again") for pod in pods if not pod.deleted_at)


def _pause(job: JobFacts, intent: Intent) -> SuspendJob:
    return SuspendJob(job.name, job.uid, job.generation, f"all pods are started again ({intent.cause})")


def _done(memory: TrainingRunStatus) -> Step:
    restarts = memory.restarts.model_copy(update={"by_operator": memory.restarts.by_operator + 1})
    return Step(memory.model_copy(update={"intent": None, "restarts": restarts}))


def _dropped(memory: TrainingRunStatus, why: str) -> Step:
    event = Event(EventReason.GANG_RESTART, f"The restart of all pods is given up: {why}.", is_warning=True)
    new: dict[str, object] = {"intent": None}
    if memory.incident is not None and memory.ledger[-1].action is Act.GANG_RESTART:
        new["ledger"] = [*memory.ledger[:-1], memory.ledger[-1].model_copy(update={"action": Act.NONE})]
    return Step(memory.model_copy(update=new), (), (event,))
