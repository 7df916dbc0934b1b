"""What node 0 said last: its termination message knows steps that the last look at its progress, seconds before the end, could not."""

from __future__ import annotations

from ddp_operator.api.trainingrun import CheckpointStatus, ProgressStatus
from ddp_operator.decide.classify import LastWords, last_words
from ddp_operator.decide.facts import PodFacts, RunFacts, Termination
from ddp_operator.decide.progress import percent
from ddp_operator.decide.timing import sane
from ddp_operator.decide.wording import count, moment

LEADS = ("master-0", "worker-0")
"""Whose word counts: node 0's, which has the run directory. A job with a master has both, and then the master is it."""


def with_last_step(progress: ProgressStatus | None, facts: RunFacts) -> ProgressStatus | None:
    """The progress, at the step that node 0 had reached when it ended, if that is further and no nonsense."""
    said = _said(facts)
    if progress is None or said is None:
        return progress
    words, _ = said
    step = count(words.step)
    if step <= progress.step or (progress.total_steps and step > progress.total_steps):
        return progress
    return progress.model_copy(update={"step": step, "percent": percent(step, progress.total_steps), "samples_per_second": "", "eta": ""})


def with_last_durable(checkpoint: CheckpointStatus | None, facts: RunFacts, now: float) -> CheckpointStatus | None:
    """The newest durable step, counting what node 0 wrote on its way out. How many bytes that were it does not say: as many as before."""
    said = _said(facts)
    if said is None or not said[0].durable_step:
        return checkpoint
    words, ended = said
    step, total = count(words.durable_step or 0), facts.status.progress.total_steps if facts.status.progress else 0
    if step <= (checkpoint.step if checkpoint else 0) or (total and step > total):
        return checkpoint
    bytes_before = checkpoint.bytes if checkpoint else 0
    is_verified = checkpoint.verified if checkpoint else False
    return CheckpointStatus(step=step, saved_at=moment(sane(ended.finished_at, now)), bytes=bytes_before, verified=is_verified)


def is_older(said: int, stored: int, facts: RunFacts) -> bool:
    """Whether a step is of a pod that is gone, and behind what is stored: its last words, now gone with it, knew more.

    A living node 0 may go back: it has found its newest checkpoint to be bad.
    """
    return said < stored and facts.progress.pod_uid not in {pod.uid for pod in facts.pods}


def _said(facts: RunFacts) -> tuple[LastWords, Termination] | None:
    lead = _lead(facts)
    if lead is None:
        return None
    ended = lead.ended or (None if _is_heard_again(facts, lead) else lead.ended_before)
    return (last_words(ended.message), ended) if ended and ended.message else None


def _is_heard_again(facts: RunFacts, lead: PodFacts) -> bool:
    """Whether the container that runs now has spoken: it may well go on from an older step than the one before it had reached."""
    return facts.progress.pod_uid == lead.uid and facts.progress.heard_at > lead.started_at


def _lead(facts: RunFacts) -> PodFacts | None:
    by_replica = {pod.replica: pod for pod in facts.pods}
    return next((by_replica[replica] for replica in LEADS if replica in by_replica), None)
