"""Not writing: mere numbers are renewed at most every so often, and what is the same is not written at all.

A status is read by people and by `kubectl get -w`; each write costs the API server a transaction and each watcher a message. A change of
phase, cause, condition or memory is written at once, with the numbers of that moment.
"""

from __future__ import annotations

import math

from ddp_operator.api.trainingrun import ClaimStatus, Condition, TrainingRunStatus
from ddp_operator.api.words import Phase
from ddp_operator.decide.timing import epoch
from ddp_operator.decide.wording import moment

TOP_LEVEL_NUMBERS = ("message", "progress", "checkpoint", "numbers_written_at")
TIMING_NUMBERS = ("last_progress_at", "last_progress_step", "goodput_ratio", "lost_steps")
RESTART_NUMBERS = ("total", "in_process", "in_former_lives")
CLAIM_NUMBERS = ("used_bytes", "used_percent", "volume_bytes")
"""What changes while nothing happens. A message beside the same phase, reason and condition is one of them."""


def worth_writing(before: TrainingRunStatus, after: TrainingRunStatus, now: float, min_seconds: float) -> TrainingRunStatus:
    """`after`, or `before` if nothing differs, or only numbers that were renewed less than `min_seconds` ago."""
    if after.model_copy(update={"numbers_written_at": before.numbers_written_at}) == before:
        return before
    if now < renewal_at(before, now, min_seconds) and not _is_farewell(before, after) and is_renewal(before, after):
        return before
    # Rounded up: times hold whole seconds, and six writes a minute must not become seven.
    return after.model_copy(update={"numbers_written_at": moment(math.ceil(now))})


def _is_farewell(before: TrainingRunStatus, after: TrainingRunStatus) -> bool:
    """Whether a run that does not train tells a newer durable step: the pod that said it may be gone at the next look."""
    told = after.checkpoint.step if after.checkpoint else 0
    return after.phase is not Phase.RUNNING and told > (before.checkpoint.step if before.checkpoint else 0)


def renewal_at(before: TrainingRunStatus, now: float, min_seconds: float) -> float:
    """When numbers may be written again; a time in the future is a clock that was set back, and holds nothing up."""
    written_at = epoch(before.numbers_written_at)
    return written_at + min_seconds if written_at <= now + 1.0 else now


def is_renewal(before: TrainingRunStatus, after: TrainingRunStatus) -> bool:
    """Whether nothing but numbers differs."""
    return with_numbers_of(before, after) == before


def with_numbers_of(before: TrainingRunStatus, after: TrainingRunStatus) -> TrainingRunStatus:
    """`after` with the numbers of `before`."""
    new: dict[str, object] = {name: getattr(before, name) for name in TOP_LEVEL_NUMBERS}
    new["timing"] = after.timing.model_copy(update={name: getattr(before.timing, name) for name in TIMING_NUMBERS})
    new["restarts"] = after.restarts.model_copy(update={name: getattr(before.restarts, name) for name in RESTART_NUMBERS})
    new["claims"] = _claims(before.claims, after.claims)
    new["conditions"] = _conditions(before.conditions, after.conditions)
    return after.model_copy(update=new)


def _claims(before: list[ClaimStatus], after: list[ClaimStatus]) -> list[ClaimStatus]:
    old = {claim.name: claim for claim in before}
    return [
        claim.model_copy(update={name: getattr(old[claim.name], name) for name in CLAIM_NUMBERS}) if claim.name in old else claim
        for claim in after
    ]


def _conditions(before: list[Condition], after: list[Condition]) -> list[Condition]:
    old = {condition.type: condition for condition in before}
    return [
        condition.model_copy(update={"message": old[condition.type].message}) if condition.type in old else condition for condition in after
    ]
