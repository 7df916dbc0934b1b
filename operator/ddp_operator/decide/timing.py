"""When what happened in this life of the run: pending, first pod, all pods, first step, pauses; and what a run's pods add up to."""

from __future__ import annotations

import math
from datetime import datetime

from ddp_operator.api.trainingrun import TimingStatus, TrainingRunStatus
from ddp_operator.api.words import FINAL_PHASES, Phase
from ddp_operator.decide.facts import JobFacts, PodFacts, ProgressFacts, RunFacts
from ddp_operator.decide.wording import count, moment

STEPPING = frozenset({"training", "evaluating", "saving", "finished"})
"""Phases of the progress document in which steps have been made."""


def epoch(at: datetime | None) -> float:
    """Seconds since the epoch; 0.0 for "never"."""
    return at.timestamp() if at else 0.0


def sane(at: float, now: float) -> float:
    """Somebody else's time, brought between 0 and now; what is no time is now."""
    return now if not math.isfinite(at) or at <= 0 else min(at, now)


def is_finished(job: JobFacts) -> bool:
    """Whether PyTorchJob v1 has ended it for good: its Succeeded and Failed are final."""
    return any(job.conditions.get(end, ("",))[0] == "True" for end in ("Succeeded", "Failed"))


def runs(pod: PodFacts) -> bool:
    """Whether its container runs, as far as the API server knows, and nobody has told it to leave."""
    return pod.phase == "Running" and not pod.deleted_at and pod.ended is None and not pod.waiting_reason


def has_ended_well(pod: PodFacts) -> bool:
    """Whether it has done what it was for. Its phase says Succeeded a moment after its container has ended with 0."""
    return not pod.deleted_at and (pod.phase == "Succeeded" or (pod.ended is not None and pod.ended.exit_code == 0))


def all_run(facts: RunFacts) -> bool:
    """Whether each pod that the job wants runs."""
    job = facts.job
    return job is not None and job.desired > 0 and len({pod.replica for pod in facts.pods if runs(pod)}) >= job.desired


def stepping_document(facts: RunFacts) -> ProgressFacts | None:
    """The progress document, if it is that of a pod of ours and tells of steps."""
    look = facts.progress
    if look.document is None or look.document.phase not in STEPPING or look.pod_uid not in {pod.uid for pod in facts.pods}:
        return None
    return look.document


def kept(facts: RunFacts, memory: TrainingRunStatus, now: float) -> TimingStatus:
    """The times so far. All are on our clock, but for the first pod's start, which may lie before the operator's own."""
    timing, job = memory.timing, facts.job
    if job is None:
        return timing
    new: dict[str, object] = {}
    if timing.pending_since is None:
        new["pending_since"] = moment(sane(job.created_at, now))
    if job.suspend and timing.suspended_at is None:
        new["suspended_at"] = moment(now)
    if job.suspend and memory.intent is None and timing.running_at is not None:
        new["running_at"] = None  # somebody's pause is no loss: what comes after it is a start, not a restart
    if not job.suspend and timing.suspended_at is not None:
        new["suspended_at"] = None
        new["suspended_seconds"] = count(timing.suspended_seconds + max(0.0, math.floor(now) - epoch(timing.suspended_at)))
        if timing.gathered_at is None:
            new["pending_since"] = moment(now)
    starts = [sane(pod.started_at, now) for pod in facts.pods if pod.phase == "Running"]
    if timing.started_at is None and starts:
        # Pods may be older than this life: it began when somebody resumed what we had stopped.
        new["started_at"] = moment(max(min(starts), epoch(timing.pending_since)))
    if timing.gathered_at is None and all_run(facts):
        new["gathered_at"] = moment(now)
    if timing.running_at is None and not job.suspend and stepping_document(facts) is not None:
        new["running_at"] = moment(now)
    return timing.model_copy(update=new) if new else timing


def with_numbers(facts: RunFacts, timing: TimingStatus) -> TimingStatus:
    """With what node 0 says: the newest step, what was lost, and the goodput."""
    document = facts.progress.document
    if document is None:
        return timing
    ratio = document.goodput_ratio
    return timing.model_copy(
        update={
            "last_progress_at": moment(facts.progress.heard_at) if facts.progress.heard_at > 0 else timing.last_progress_at,
            "last_progress_step": count(document.step),
            "goodput_ratio": f"{ratio:.3f}" if ratio is not None and 0 <= ratio <= 1 else timing.goodput_ratio,
            "lost_steps": max(timing.lost_steps, count(document.lost_steps)),
        }
    )


def reached(facts: RunFacts, timing: TimingStatus, phase: Phase, now: float) -> TimingStatus:
    """With the moments that the phase tells: the first of Running, where no pod can tell of steps, and the end, if it is there."""
    is_first = phase is Phase.RUNNING and not any(pod.progress_port for pod in facts.pods)
    new = {
        "running_at": timing.running_at or (moment(now) if is_first else None),
        "finished_at": (timing.finished_at or moment(now)) if phase in FINAL_PHASES else None,
    }
    after = timing.model_copy(update=new)
    return timing if after == timing else after


def trained_seconds(memory: TrainingRunStatus, since: float, now: float) -> float:
    """Time of training between then and now. Pauses, and what the ledger's incidents took until it trained again, are left out."""
    running_at = epoch(memory.timing.running_at) or now  # after the last pause
    begun_at = max(since, running_at)
    newest_end = None if memory.incident is None else moment(now)
    ends = [*(entry.at for entry in memory.ledger[1:]), newest_end]  # of who never recovered: the next incident's begin
    seconds = now - begun_at
    for entry, end in zip(memory.ledger, ends, strict=False):
        lost_at, back_at = epoch(entry.at), epoch(entry.recovered_at or end)
        if lost_at >= running_at:
            seconds -= max(0.0, back_at - max(lost_at, begun_at))
    return max(0.0, seconds)


def active_seconds(timing: TimingStatus, now: float) -> float:
    """Time since the first pod ran, pauses left out; 0.0 before."""
    if timing.started_at is None:
        return 0.0
    pause = now - epoch(timing.suspended_at) if timing.suspended_at else 0.0
    return max(0.0, now - epoch(timing.started_at) - timing.suspended_seconds - max(0.0, pause))
