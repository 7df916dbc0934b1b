"""Events for what a new status says that the one before did not: phases, recoveries, stale checkpoints, full volumes, lost claims.

A leader may die, or lose its lease, between a status and its events. Whoever leads then tells what is young in the status (`recent`). The
words may be others, but the fact is the same, so that what was posted before is not posted again.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from ddp_operator.api.trainingrun import Condition, LedgerEntry, TrainingRunStatus
from ddp_operator.api.words import Act, ConditionType, EventReason, Phase
from ddp_operator.decide.decision import Action, DeletePod, Event
from ddp_operator.decide.durations import spoken
from ddp_operator.decide.timing import epoch
from ddp_operator.decide.wording import LEDGER_CHARS, cut, moment, stamp

RECENT_SECONDS: Final = 600.0
"""Longer than a crash loop keeps an operator away, and than any run is not looked at; events themselves are kept for an hour."""
OF_PHASE: dict[Phase, tuple[EventReason, bool]] = {
    Phase.SUCCEEDED: (EventReason.SUCCEEDED, False),
    Phase.FAILED: (EventReason.FAILED, True),
    Phase.HUNG: (EventReason.HUNG, True),
    Phase.RESTARTING: (EventReason.PHASE, True),
}
"""The reason of the event for a new phase, and whether it is a warning; others are plain changes."""
OF_CONDITION: dict[tuple[ConditionType, str], EventReason] = {
    (ConditionType.CHECKPOINT_FRESH, "CheckpointStale"): EventReason.CHECKPOINT_STALE,
    (ConditionType.STORAGE_HEALTHY, "VolumeFilling"): EventReason.VOLUME_FILLING,
    (ConditionType.STORAGE_HEALTHY, "VolumeFull"): EventReason.VOLUME_FILLING,
    (ConditionType.STORAGE_HEALTHY, "ClaimLost"): EventReason.CLAIM_LOST,
    (ConditionType.STORAGE_HEALTHY, "ClaimMissing"): EventReason.CLAIM_LOST,
}
"""What is told when a condition comes to have this reason."""
OF_ACT: dict[Act, tuple[EventReason, bool]] = {
    Act.STOP: (EventReason.STOPPED, True),
    Act.FREE_PODS: (EventReason.PODS_FREED, True),
    Act.CLEAN_UP: (EventReason.CLEANED_UP, False),
}
"""The acts that the ledger tells whole; of a gang restart the intent tells, for as long as it stands."""


def changes(before: TrainingRunStatus, after: TrainingRunStatus) -> tuple[Event, ...]:
    """All of them, in a fixed order; nothing for equal statuses."""
    return (*_phase(before, after), *_recovery(before, after), *_conditions(before, after))


def recent(status: TrainingRunStatus, now: float) -> tuple[Event, ...]:
    """What a stored status tells that is young, whether or not it was told. That it is pending is what a run begins with: no news."""
    since = moment(now - RECENT_SECONDS)
    events: list[Event] = []
    if status.phase_since is not None and status.phase_since >= since and status.phase is not Phase.PENDING:
        events.append(_of_phase(status))
    for entry in status.ledger:
        if entry.at >= since and entry.action in OF_ACT:
            events.append(_of_act(entry))
        if entry.recovered_at is not None and entry.recovered_at >= since and entry.recovered_at > entry.at:
            events.append(_of_recovery(entry, entry.recovered_at))
    intent = status.intent
    if intent is not None and intent.started_at >= since:
        told = f"All pods are started again ({intent.cause})."
        events.append(Event(EventReason.GANG_RESTART, told, is_warning=True, fact=fact(intent.action, intent.started_at)))
    events += [
        _of_condition(condition, reason)
        for condition in status.conditions
        if condition.last_transition_time >= since and (reason := _reason(condition)) is not None
    ]
    return tuple(events)


def refused(status: TrainingRunStatus, action: Action, why: str) -> Event:
    """That the API server refuses an act, whose intent the status tells already. Told once for each object, however often it is tried."""
    of_job = EventReason.STOPPED if status.stopped_by_us is not None else EventReason.GANG_RESTART
    reason, target = (EventReason.PODS_FREED, action.pod) if isinstance(action, DeletePod) else (of_job, action.job)
    kind = type(action).__name__
    what_to_do = "look at the operator's rights, and at admission webhooks and policies"
    told = f"{kind} of {target} is refused, and is tried again: {cut(why, LEDGER_CHARS)}; {what_to_do}."
    return Event(reason, cut(told), is_warning=True, fact=f"refused/{kind}/{action.uid}")


def fact(word: str, at: datetime, about: str = "") -> str:
    """The name of a fact that holds since then."""
    return f"{word}/{stamp(at)}/{about}"


def _of_act(entry: LedgerEntry) -> Event:
    reason, is_warning = OF_ACT[entry.action]
    if entry.action is Act.FREE_PODS:  # the entry is the incident's, and may speak of another pod
        told = f"Pods that did not end, or whose node is lost, were freed: {entry.cause} of {entry.pod}."
    else:
        told = f"{entry.cause}: {entry.message}." if entry.action is Act.STOP else f"{entry.message}."
    return Event(reason, cut(told), is_warning, fact(entry.action, entry.at, entry.pod))


def _phase(before: TrainingRunStatus, after: TrainingRunStatus) -> Iterator[Event]:
    if before.phase_since is not None and after.phase is not before.phase:
        yield _of_phase(after, f"{before.phase} -> ")


def _of_phase(status: TrainingRunStatus, before: str = "") -> Event:
    reason, is_warning = OF_PHASE.get(status.phase, (EventReason.PHASE, False))
    told = ": ".join(part for part in (f"{before}{status.phase}", status.reason, status.message) if part)
    return Event(reason, cut(told), is_warning, fact(status.phase, status.phase_since or moment(0.0)))


def _recovery(before: TrainingRunStatus, after: TrainingRunStatus) -> Iterator[Event]:
    if before.incident is None or after.incident is not None or not before.ledger or not after.ledger:
        return
    entry, old = after.ledger[-1], before.ledger[-1]
    if entry.recovered_at is not None and old.recovered_at is None and entry.at >= old.at:
        yield _of_recovery(entry, entry.recovered_at)


def _of_recovery(entry: LedgerEntry, recovered_at: datetime) -> Event:
    took = spoken(epoch(recovered_at) - epoch(entry.at))
    cost = "" if entry.lost_steps is None else f"; {entry.lost_steps} steps were done again"
    told = f"It trains again {took} after {entry.cause} of {entry.pod or 'its pods'}{cost}."
    return Event(EventReason.RESTARTED, cut(told), fact=fact("recovered", recovered_at, entry.pod))


def _conditions(before: TrainingRunStatus, after: TrainingRunStatus) -> Iterator[Event]:
    old = {condition.type: condition.reason for condition in before.conditions}
    for condition in after.conditions:
        reason = _reason(condition)
        if reason is not None and old.get(condition.type) != condition.reason:
            yield _of_condition(condition, reason)


def _reason(condition: Condition) -> EventReason | None:
    return OF_CONDITION.get((condition.type, condition.reason))


def _of_condition(condition: Condition, reason: EventReason) -> Event:
    about = fact(condition.type, condition.last_transition_time, condition.reason)
    return Event(reason, cut(condition.message), is_warning=True, fact=about)
