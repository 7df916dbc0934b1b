"""Deadlines that hold on a quiet job too: the training operator looks at its own only when something happens, so never on a hung one."""

from __future__ import annotations

from ddp_operator.api.trainingrun import Policy, TimingStatus
from ddp_operator.api.words import Cause
from ddp_operator.decide.durations import seconds
from ddp_operator.decide.timing import active_seconds, epoch


def passed(timing: TimingStatus, policy: Policy, now: float) -> tuple[Cause, str] | None:
    """The deadline that is over, with a sentence. A pause stops both clocks; ask only while the job is not paused."""
    due = due_at(timing, policy, now)
    if policy.pending_deadline is not None and due.get(Cause.PENDING_TOO_LONG, now) < now:
        return Cause.PENDING_TOO_LONG, (f"its pods did not all run for one moment within pendingDeadline {policy.pending_deadline}")
    if policy.active_deadline is not None and due.get(Cause.DEADLINE_EXCEEDED, now) < now:
        return Cause.DEADLINE_EXCEEDED, (f"it was active for longer than activeDeadline {policy.active_deadline}")
    return None


def due_at(timing: TimingStatus, policy: Policy, now: float) -> dict[Cause, float]:
    """When each deadline that is set and running will be over, seconds since the epoch."""
    due: dict[Cause, float] = {}
    if policy.pending_deadline is not None and timing.gathered_at is None and timing.pending_since is not None:
        due[Cause.PENDING_TOO_LONG] = epoch(timing.pending_since) + seconds(policy.pending_deadline)
    if policy.active_deadline is not None and timing.started_at is not None:
        due[Cause.DEADLINE_EXCEEDED] = now + seconds(policy.active_deadline) - active_seconds(timing, now)
    return due
