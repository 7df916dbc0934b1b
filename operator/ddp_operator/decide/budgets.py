"""Whether a run has used up what its policy allows: failures, preemptions, and failures in a row without a newer durable step."""

from __future__ import annotations

from ddp_operator.api.trainingrun import Policy, TrainingRunStatus
from ddp_operator.api.words import Cause


def spent(memory: TrainingRunStatus, policy: Policy) -> tuple[Cause, str] | None:
    """The budget that is used up, with a sentence, to which the table of advice adds what to do; None while all last."""
    restarts = memory.restarts
    is_heard = memory.timing.last_progress_at is not None  # of who tells no steps (a foreign image) nobody knows that it makes none
    if is_heard and 0 < policy.no_progress_restarts <= restarts.without_progress:
        return Cause.NO_PROGRESS, (
            f"{restarts.without_progress} failures in a row without a durable step newer than {restarts.durable_step_at_last_failure}"
        )
    if restarts.failures > policy.max_restarts:
        return Cause.BUDGET_USED_UP, f"{restarts.failures} failures are more than maxRestarts {policy.max_restarts}"
    if restarts.preemptions > policy.max_preemptions:
        return Cause.BUDGET_USED_UP, f"{restarts.preemptions} preemptions are more than maxPreemptions {policy.max_preemptions}"
    return None
