"""Events for what a new status says that the one before did not: phases, recoveries, stale checkpoints, full volumes, lost claims."""

from __future__ import annotations

from collections.abc import Iterator

from ddp_operator.api.trainingrun import TrainingRunStatus
from ddp_operator.api.words import ConditionType, EventReason, Phase
from ddp_operator.decide.decision import Event
from ddp_operator.decide.durations import spoken
from ddp_operator.decide.timing import epoch
from ddp_operator.decide.wording import cut

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


def changes(before: TrainingRunStatus, after: TrainingRunStatus) -> tuple[Event, ...]:
    """All of them, in a fixed order; nothing for equal statuses."""
    return (*_phase(before, after), *_recovery(before, after), *_conditions(before, after))


def _phase(before: TrainingRunStatus, after: TrainingRunStatus) -> Iterator[Event]:
    if before.phase_since is not None and after.phase is not before.phase:
        reason, is_warning = OF_PHASE.get(after.phase, (EventReason.PHASE, False))
        told = ": ".join(part for part in (f"{before.phase} -> {after.phase}", after.reason, after.message) if part)
        yield Event(reason, cut(told), is_warning)


def _recovery(before: TrainingRunStatus, after: TrainingRunStatus) -> Iterator[Event]:
    if before.incident is None or after.incident is not None or not before.ledger or not after.ledger:
        return
    entry, old = after.ledger[-1], before.ledger[-1]
    if entry.recovered_at is not None and old.recovered_at is None and entry.at >= old.at:
        took = spoken(epoch(entry.recovered_at) - epoch(entry.at))
        cost = "" if entry.lost_steps is None else f"; {entry.lost_steps} steps were done again"
        yield Event(EventReason.RESTARTED, cut(f"It trains again {took} after {entry.cause} of {entry.pod or 'its pods'}{cost}."))


def _conditions(before: TrainingRunStatus, after: TrainingRunStatus) -> Iterator[Event]:
    old = {condition.type: condition.reason for condition in before.conditions}
    for condition in after.conditions:
        told = OF_CONDITION.get((condition.type, condition.reason))
        if told is not None and old.get(condition.type) != condition.reason:
            yield Event(told, cut(condition.message), is_warning=True)
