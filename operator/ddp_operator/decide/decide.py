"""What is true of a run, and what to do about it: facts and a clock in, a decision out. Read it from top to bottom.

Pure, total and level-based: nothing is remembered but in the status, so the operator may be killed between any two lines of what follows
from a decision. One family of acts at a time; the first that has something under way makes the others wait.
"""

from __future__ import annotations

from dataclasses import replace

from ddp_operator.api.trainingrun import CheckpointStatus, ProgressStatus, ReplicaStatus, TrainingRunStatus
from ddp_operator.api.words import ConditionType, Phase
from ddp_operator.decide import announce, cleanup, due, farewell, incidents, intents, lives, nodes, quiet, repeats, stops, timing
from ddp_operator.decide.claims import claim_statuses
from ddp_operator.decide.conditions import TRUE_IN, conditions
from ddp_operator.decide.decision import Action, Decision, Event
from ddp_operator.decide.facts import RunFacts
from ddp_operator.decide.phases import Truth, true_phase
from ddp_operator.decide.progress import checkpoint_status, progress_status
from ddp_operator.decide.wording import count, moment

FAMILIES = (intents.finish, stops.proceed, intents.open_, nodes.proceed, cleanup.proceed)
"""In order of precedence: what was begun is finished first; a stop goes before a restart; a restart frees its own pods."""
OF_LEAVING_JOBS = (nodes.proceed,)
"""A job that is being deleted is not written any more; its pods are freed: a deletion in the foreground waits for them."""
BLIND_SECONDS = 5.0
"""When to look again while nothing may be concluded from what was seen."""


def decide(facts: RunFacts, now: float, min_progress_seconds: float = 10.0) -> Decision:
    """The status to be, and what to do about it, at `now` (seconds since the epoch). Never raises.

    Args:
        facts: everything known of the run; `facts.status` is the stored status, the only memory.
        now: the operator's clock.
        min_progress_seconds: the shortest time between two writes in which only numbers change.
    """
    if is_blind(facts):
        return Decision(facts.status, look_again_seconds=BLIND_SECONDS)
    before = facts.status
    facts = replace(facts, status=_remembered(facts, now))
    truth = _truth(facts, now)
    facts, actions, events, is_under_way = _acted(facts, truth, now)
    if facts.status.stopped_by_us is not None or truth.phase is not Phase.HUNG:
        truth = _truth(facts, now)  # what was begun just now is part of the truth
    after = _told(facts, truth, now)
    status = quiet.worth_writing(before, after, now, min_progress_seconds)
    is_held = status is before and after != before
    return Decision(
        status=status,
        events=(*events, *announce.changes(before, status)),
        actions=actions,
        look_again_seconds=due.look_again_seconds(
            replace(facts, status=after),
            now,
            is_under_way=is_under_way,
            renewal_at=quiet.renewal_at(before, now, min_progress_seconds) if is_held else None,
        ),
    )


def is_blind(facts: RunFacts) -> bool:
    """Whether nothing may be concluded: pods were never listed, the run is on its way out, or the job is an old read."""
    job, memory = facts.job, facts.status
    if not facts.pods_are_known or facts.deleted_at:
        return True
    return job is not None and memory.job_uid == lives.uid_of(job) and job.generation < memory.job_generation


def _remembered(facts: RunFacts, now: float) -> TrainingRunStatus:
    """The memory of this life: times, and what was lost since the last look."""
    memory = lives.begun(facts, now)
    memory = memory.model_copy(update={"timing": timing.kept(facts, memory, now)})
    return incidents.noted(facts, memory, now)


def _truth(facts: RunFacts, now: float) -> Truth:
    return true_phase(facts, now, has_trained=facts.status.timing.running_at is not None)


def _acted(facts: RunFacts, truth: Truth, now: float) -> tuple[RunFacts, tuple[Action, ...], tuple[Event, ...], bool]:
    """The facts with the memory that the acts leave, the actions of one family, the events of all that ran, whether it goes on."""
    events: tuple[Event, ...] = ()
    if facts.job is None:
        return facts, (), events, False
    for family in OF_LEAVING_JOBS if facts.job.deleted_at else FAMILIES:
        step = family(facts, truth.phase, now)
        memory, actions = repeats.held_back(facts, step.memory, step.actions, now)
        facts, events = replace(facts, status=memory), (*events, *step.events)
        if step.actions or step.waits:
            return facts, actions, events, True
    return facts, (), events, False


def _told(facts: RunFacts, truth: Truth, now: float) -> TrainingRunStatus:
    """The whole status: the memory, the truth, and the numbers that people read."""
    memory = facts.status
    is_new = truth.phase is not memory.phase or memory.phase_since is None
    status = memory.model_copy(
        update={
            "observed_generation": count(facts.generation),
            "phase": truth.phase,
            "reason": truth.reason,
            "message": truth.message,
            "phase_since": moment(now) if is_new else memory.phase_since,
            "progress": _progress(facts, truth.phase, now),
            "checkpoint": _checkpoint(facts, now),
            "replicas": _replicas(facts),
            "claims": claim_statuses(facts),
            "timing": timing.reached(facts, timing.with_numbers(facts, memory.timing), truth.phase, now),
        }
    )
    return status.model_copy(update={"conditions": conditions(replace(facts, status=status), now)})


def _progress(facts: RunFacts, phase: Phase, now: float) -> ProgressStatus | None:
    stored, document = facts.status.progress, facts.progress.document
    said = progress_status(document, now, facts.progress.heard_at or None) if document else stored
    if said is not None and stored is not None and farewell.is_older(said.step, stored.step, facts):
        said = stored
    told = farewell.with_last_step(said, facts)
    if told is None or phase in TRUE_IN[ConditionType.RUNNING]:
        return told
    return told.model_copy(update={"samples_per_second": "", "eta": ""})  # no rate, and no end, while nothing trains


def _checkpoint(facts: RunFacts, now: float) -> CheckpointStatus | None:
    """The newest durable step. The time of a step stays as first read: a pod's clock that runs ahead would move it with each look."""
    stored, document = facts.status.checkpoint, facts.progress.document
    said = checkpoint_status(document, now) if document else None
    if said is None or stored is None:
        said = said or stored
    elif farewell.is_older(said.step, stored.step, facts):
        said = stored
    elif said.step == stored.step:
        said = said.model_copy(update={"saved_at": stored.saved_at})
    last = farewell.with_last_durable(said, facts, now)
    return stored if last and stored and last.step == stored.step and last is not said else last


def _replicas(facts: RunFacts) -> ReplicaStatus:
    phases = [pod.phase for pod in facts.pods]
    return ReplicaStatus(
        desired=count(facts.job.desired) if facts.job else 0,
        running=sum(timing.runs(pod) for pod in facts.pods),
        pending=phases.count("Pending"),
        succeeded=phases.count("Succeeded"),
        failed=phases.count("Failed"),
    )
