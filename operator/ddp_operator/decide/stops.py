"""Ending a run for good: a budget is used up, or a deadline is over. The job is paused by us, which frees its pods, and stays so.

`stopped_by_us` and the generation that the job will have after our change are written before it is made. A successor finishes it, also
when somebody has changed the job before our pause arrives. Whoever resumes the job wins: that begins a new life, but for who does so
within moments, and again. A job of Kueue is never paused by us.
"""

from __future__ import annotations

from ddp_operator.api.trainingrun import LedgerEntry, Policy
from ddp_operator.api.words import FINAL_PHASES, Act, Cause, EventReason, Phase
from ddp_operator.decide import budgets, deadlines, lives
from ddp_operator.decide.announce import fact
from ddp_operator.decide.decision import Event, SuspendJob
from ddp_operator.decide.durations import spoken
from ddp_operator.decide.facts import RunFacts
from ddp_operator.decide.incidents import appended
from ddp_operator.decide.step import Step
from ddp_operator.decide.timing import epoch, is_finished
from ddp_operator.decide.waiting import waiting
from ddp_operator.decide.wording import LEDGER_CHARS, count, cut, moment

STOPS_IN_A_LIFE = 2
"""A stop ends a life, unless something resumes the job within moments (`lives`). After so many it is not fought any more."""


def proceed(facts: RunFacts, phase: Phase, now: float) -> Step:
    """Stop the run, carry a stop out that is not yet done, or report what may not be done."""
    memory, job = facts.status, facts.job
    assert job is not None
    if memory.stopped_by_us is not None:
        is_due = not job.suspend and not is_finished(job) and job.generation == memory.stopped_generation - 1
        return Step(memory, (_pause(facts, memory.stopped_by_us.value),) if is_due else ())
    if is_finished(job) or job.suspend or phase in FINAL_PHASES:
        return Step(memory)
    verdict = _verdict(facts, now)
    if verdict is None:
        return Step(memory if memory.overdue is None else memory.model_copy(update={"overdue": None}))
    cause, why = verdict
    before = _stops(facts, cause)
    how = _why_not(facts, cause, before)
    if how:
        if memory.overdue is cause:
            return Step(memory)
        return Step(
            memory.model_copy(update={"overdue": cause}), (), (Event(EventReason.STOPPED, cut(f"{cause}: {why}. {how}."), is_warning=True),)
        )
    if before:
        why = f"it was resumed within {spoken(lives.AT_ONCE_SECONDS)} of a stop, which renews no budget: {why}"
    entry = LedgerEntry(at=moment(now), cause=cause, message=cut(why, LEDGER_CHARS), action=Act.STOP, step=memory.timing.last_progress_step)
    stopped = appended(memory, entry).model_copy(
        update={"stopped_by_us": cause, "stopped_generation": count(job.generation + 1), "overdue": None}
    )
    event = Event(EventReason.STOPPED, cut(f"{cause}: {why}."), is_warning=True, fact=fact(entry.action, entry.at))
    return Step(stopped, (_pause(facts, why),), (event,))


def _verdict(facts: RunFacts, now: float) -> tuple[Cause, str] | None:
    memory, policy = facts.status, facts.spec.policy
    verdict = budgets.spent(memory, policy) or deadlines.passed(memory.timing, policy, now)
    if verdict is None or verdict[0] is not Cause.PENDING_TOO_LONG:
        return verdict
    # Its pods go with the stop, and the scheduler's words with them: who comes later has only these.
    waits_for = waiting(facts.job, facts.pods, facts.claims, now)
    return verdict if waits_for is None else (verdict[0], f"{verdict[1]}: {waits_for[1]}")


def _stops(facts: RunFacts, cause: Cause) -> int:
    """How often it was stopped for this in this life."""
    memory = facts.status
    since = epoch(memory.timing.pending_since)
    return sum(entry.action is Act.STOP and entry.cause is cause and epoch(entry.at) >= since for entry in memory.ledger)


def _why_not(facts: RunFacts, cause: Cause, stops: int) -> str:
    """Why it is only reported; "" if it may be stopped."""
    job, policy = facts.job, facts.spec.policy
    assert job is not None
    if job.queue:
        return "Kueue owns the job: to stop it, set spec.active to false in its Workload"
    if not _may_stop(cause, policy):
        return "by policy it is only reported"
    if stops >= STOPS_IN_A_LIFE:
        return "It was resumed at once after each stop, so it is only reported now: set spec.runPolicy.suspend at the job's source"
    return ""


def _may_stop(cause: Cause, policy: Policy) -> bool:
    by_deadline = cause in {Cause.DEADLINE_EXCEEDED, Cause.PENDING_TOO_LONG}
    return (policy.on_deadline if by_deadline else policy.on_budget) == "Stop"


def _pause(facts: RunFacts, why: str) -> SuspendJob:
    job = facts.job
    assert job is not None
    return SuspendJob(job.name, job.uid, job.generation, why)
