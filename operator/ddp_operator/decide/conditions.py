"""The conditions of a run, after kstatus: Ready, Reconciling and Stalled make it Current, InProgress or Failed for helm, Flux and Argo CD.

One table says for each phase what each condition is. All are set on first sight, also those that are False: who waits for one
with `kubectl wait` must find it.
"""

from __future__ import annotations

from collections.abc import Mapping

from ddp_operator.api.trainingrun import Condition, TrainingRunStatus
from ddp_operator.api.words import FINAL_PHASES, Cause, CheckpointReason, ConditionReason, ConditionType, PendingReason, Phase
from ddp_operator.decide import durations
from ddp_operator.decide.claims import storage_health
from ddp_operator.decide.facts import RunFacts
from ddp_operator.decide.finding import Answer, Finding
from ddp_operator.decide.timing import epoch, sane, trained_seconds
from ddp_operator.decide.wording import count, cut, moment, stamp

_TRAINS = frozenset({Phase.RUNNING, Phase.SAVING})
_ON_ITS_WAY = frozenset({Phase.PENDING, Phase.STARTING, Phase.RESTARTING, Phase.HUNG})

TRUE_IN: Mapping[ConditionType, frozenset[Phase]] = {
    ConditionType.READY: _TRAINS | {Phase.SUCCEEDED},
    ConditionType.RECONCILING: _ON_ITS_WAY,
    ConditionType.STALLED: frozenset({Phase.FAILED}),
    ConditionType.RUNNING: _TRAINS,
    ConditionType.SUCCEEDED: frozenset({Phase.SUCCEEDED}),
}
"""In which phases a condition is True. Ready: it trains, or has. Reconciling: it is on its way there. Stalled: it will not get there."""
UNKNOWN_IN: Mapping[ConditionType, frozenset[Phase]] = {
    ConditionType.SUCCEEDED: frozenset(Phase) - {Phase.SUCCEEDED, Phase.FAILED},
}
"""In which it is not known yet; in all others it is False."""

OF_PHASES: Mapping[str, ConditionReason] = {word: word for words in (Phase, PendingReason, Cause) for word in words}
"""What the run's own reason may be; without one, or with one of another version, the phase is the reason."""
OF_CHECKPOINTS: Mapping[str, CheckpointReason] = {word: word for word in CheckpointReason}
"""What a stored reason of CheckpointFresh may be; anything else is another version's, or somebody else's, and is not known here."""


def conditions(facts: RunFacts, now: float) -> list[Condition]:
    """All conditions, in the order of their type. A transition time moves only when the status does.

    Args:
        facts: with a `status` that holds the new phase, reason, message, checkpoint and claims, and the conditions as they were.
        now: the operator's clock.
    """
    status = facts.status
    old = {condition.type: condition for condition in status.conditions}
    findings = {kind: _of_phase(kind, status) for kind in TRUE_IN} | {
        ConditionType.CHECKPOINT_FRESH: checkpoint_freshness(facts, status.phase, now),
        ConditionType.STORAGE_HEALTHY: storage_health(facts, status.claims, old.get(ConditionType.STORAGE_HEALTHY)),
    }
    return [_condition(kind, findings[kind], old.get(kind), facts.generation, now) for kind in ConditionType]


def _of_phase(kind: ConditionType, status: TrainingRunStatus) -> Finding:
    phase, message = status.phase, status.message
    answer: Answer = "True" if phase in TRUE_IN[kind] else "Unknown" if phase in UNKNOWN_IN.get(kind, ()) else "False"
    if kind is ConditionType.READY and status.overdue is not None and phase not in FINAL_PHASES:
        message = f"{message}; {status.overdue} is only reported"
    return Finding(answer, OF_PHASES.get(status.reason, phase), message)


def _condition(kind: ConditionType, finding: Finding, old: Condition | None, generation: int, now: float) -> Condition:
    return Condition(
        type=kind,
        status=finding.status,
        observed_generation=count(generation),
        last_transition_time=old.last_transition_time if old and old.status == finding.status else moment(now),
        reason=finding.reason.value,
        message=cut(finding.message),
    )


def checkpoint_freshness(facts: RunFacts, phase: Phase, now: float) -> Finding:
    """For the condition CheckpointFresh: False after `staleAfter` of training without a newer durable step.

    Only training counts, with whatever pods: what a loss or a pause took is left out, and while it does not train, the last word stands.
    """
    if phase is Phase.SUCCEEDED:
        known = facts.status.checkpoint is not None or facts.progress.document is not None
        return Finding("True", CheckpointReason.FINISHED, "training is finished") if known else _UNKNOWN
    if phase not in _TRAINS:
        return _last_word(facts.status)
    document, stored = facts.progress.document, facts.status.checkpoint
    if document is None and stored is None:
        return _UNKNOWN
    wanted = facts.spec.checkpoint.stale_after
    limit = durations.seconds(wanted)
    if document is not None and document.checkpoint_step is not None:
        step, saved_at = document.checkpoint_step, document.checkpoint_saved_at
        # Two of these times are on the pod's clock and two on ours, each compared with its own: a wrong clock in the pod does no harm.
        age_seconds = max(document.updated_at - saved_at, 0.0) + max(now - (facts.progress.heard_at or now), 0.0)
    elif stored is not None:
        step, saved_at = stored.step, epoch(stored.saved_at)
        age_seconds = now - saved_at
    elif trained_seconds(facts.status, 0.0, now) <= limit:
        return Finding("Unknown", CheckpointReason.NONE_YET, "no durable step yet")
    else:
        return Finding("False", CheckpointReason.NONE_YET, f"no durable step yet, after more than {wanted} of training")
    if trained_seconds(facts.status, now - age_seconds, now) > limit:
        newest = f"the newest durable step {count(step)} was saved at {stamp(moment(sane(saved_at, now)))}"
        return Finding("False", CheckpointReason.STALE, f"{newest}, more than {wanted} of training ago")
    return Finding("True", CheckpointReason.FRESH, f"the newest durable step is not older than {wanted} of training")


_UNKNOWN = Finding("Unknown", CheckpointReason.NOT_KNOWN, "nobody says which step is durable")


def _last_word(status: TrainingRunStatus) -> Finding:
    for condition in status.conditions:
        if condition.type is ConditionType.CHECKPOINT_FRESH:
            return Finding(condition.status, OF_CHECKPOINTS.get(condition.reason, CheckpointReason.NOT_KNOWN), condition.message)
    return _UNKNOWN
