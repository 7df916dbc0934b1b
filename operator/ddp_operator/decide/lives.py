"""The lives of a run: a new job, or a resume after we had stopped it, begins one. Budgets and times are per life, the ledger is not.

A resume within moments of the stop is no person's: something holds the job to `suspend: false` (a GitOps controller). It begins no new
life, else the budgets would be fresh for ever.
"""

from __future__ import annotations

from ddp_operator.api.trainingrun import RestartStatus, TimingStatus, TrainingRunStatus
from ddp_operator.api.words import Act
from ddp_operator.decide.decision import FIELD_MANAGER
from ddp_operator.decide.facts import JobFacts, RunFacts
from ddp_operator.decide.timing import epoch, sane
from ddp_operator.decide.wording import count, cut, moment

AT_ONCE_SECONDS = 30.0
"""After the stop: who has read why it was stopped takes longer to resume it."""


def uid_of(job: JobFacts) -> str:
    """The job's uid as a status holds it."""
    return cut(job.uid, 64)


def begun(facts: RunFacts, now: float) -> TrainingRunStatus:
    """The memory of the life that goes on, or of one that begins with this look."""
    memory, job = facts.status, facts.job
    if memory.incident is not None and not memory.ledger:  # its entry is gone: somebody has edited the status
        memory = memory.model_copy(update={"incident": None})
    if job is None:
        return memory
    if memory.job_uid != uid_of(job):
        return _new(memory, job, sane(job.created_at, now))
    if not is_resumed(memory, job):
        return memory
    if _is_before_our_pause(memory, job):
        return memory.model_copy(update={"stopped_generation": count(job.generation + 1)})
    return _resumed_at_once(memory, job) if now <= _stopped_at(memory) + AT_ONCE_SECONDS else _new(memory, job, now)


def is_resumed(memory: TrainingRunStatus, job: JobFacts) -> bool:
    """Whether somebody else has changed the job after we stopped it, or before our stop arrived, and it is not paused."""
    return memory.stopped_by_us is not None and not job.suspend and job.generation >= memory.stopped_generation


def _is_before_our_pause(memory: TrainingRunStatus, job: JobFacts) -> bool:
    """Whether the job was changed between the word that stops it and the pause, and not by a resume: the stop still holds.

    One change cannot be our pause and somebody's end of it. Of several it is told by whose the field is: not ours any more, if somebody
    has set it.
    """
    return job.generation == memory.stopped_generation or (
        memory.timing.suspended_at is None and job.suspend_manager == FIELD_MANAGER and not job.queue
    )


def _stopped_at(memory: TrainingRunStatus) -> float:
    """When the newest stop was decided; minus infinity without one."""
    return max((epoch(entry.at) for entry in memory.ledger if entry.action is Act.STOP), default=float("-inf"))


def _resumed_at_once(memory: TrainingRunStatus, job: JobFacts) -> TrainingRunStatus:
    """By a controller, then: it is the same life, with the same counters and deadlines, and `stops` finds the same verdict."""
    timing = memory.timing.model_copy(update={"suspended_at": None, "finished_at": None})
    return memory.model_copy(
        update={"stopped_by_us": None, "stopped_generation": 0, "timing": timing, "job_generation": count(job.generation)}
    )


def _new(memory: TrainingRunStatus, job: JobFacts, since: float) -> TrainingRunStatus:
    durable = memory.checkpoint.step if memory.checkpoint else memory.restarts.durable_step_at_last_failure
    return memory.model_copy(
        update={
            "job_uid": uid_of(job),
            "job_generation": count(job.generation),
            "restarts": RestartStatus(durable_step_at_last_failure=durable),
            "incarnations": {},
            "intent": None,
            "incident": None,
            "stopped_by_us": None,
            "stopped_generation": 0,
            "overdue": None,
            "timing": TimingStatus(pending_since=moment(since)),
        }
    )
