"""The lives of a run: a new job, or a resume after we had stopped it, begins one. Budgets and times are per life, the ledger is not."""

from __future__ import annotations

from ddp_operator.api.trainingrun import RestartStatus, TimingStatus, TrainingRunStatus
from ddp_operator.decide.facts import JobFacts, RunFacts
from ddp_operator.decide.timing import sane
from ddp_operator.decide.wording import count, cut, moment


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
    if is_resumed(memory, job):
        return _new(memory, job, now)
    return memory


def is_resumed(memory: TrainingRunStatus, job: JobFacts) -> bool:
    """Whether somebody else has changed the job after we stopped it, or before our stop arrived, and it is not paused."""
    return memory.stopped_by_us is not None and not job.suspend and job.generation >= memory.stopped_generation


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
