"""Whose silence it is: a run's that hangs, or that of the operator's own network. Only the first may have a gang restarted.

A node 0 that answers with a document that stands still hangs, whatever the network does. One that does not answer at all does, if

1. it was reached: it answered with an error, or refused the connection; or
2. its kubelet, which asks from beside it, calls the container not ready; or
3. this very pod was heard of before, and other runs have answered in the second half of `hungAfter`: the network is well; or
4. it was heard of before, no other run is asked (any more), so that nobody can tell, and the silence has lasted `ALONE` times `hungAfter`.

That it was heard of before makes one cut in the network cost one restart at most: what comes up behind it is never heard.
Answers that lie ahead are of a time before the clock was set back: they tell nothing until the clock is there again.
A process that is stopped (SIGSTOP) looks like a lost packet: its kernel takes the connection, and nobody answers. It is found by 2, 3 or 4.
"""

from __future__ import annotations

from ddp_operator.decide.durations import seconds
from ddp_operator.decide.facts import PodFacts, RunFacts
from ddp_operator.decide.incarnations import by_replica
from ddp_operator.decide.timing import epoch, runs, sane

ALONE = 2.0
RARELY_SECONDS = 120.0
"""A run that does not answer is asked each half a minute: one that was not asked for so long, nor for half of `hungAfter`, has ended."""
REACHED = (" answered ", "connection refused", "connectionrefused", "serves no progress document", "sent a packed answer")
"""Parts of the scraper's errors that only something which was reached brings about."""


def lead_of(facts: RunFacts) -> PodFacts | None:
    """Node 0's pod."""
    has_master = facts.job is None or facts.job.has_master
    return by_replica(facts.pods).get("master-0" if has_master else "worker-0")


def is_its_own(facts: RunFacts, now: float) -> bool:
    """Whether it is the run that is silent, as far as anybody can tell. True while node 0 answers, or is not asked."""
    look, lead = facts.progress, lead_of(facts)
    if not look.error or lead is None or not runs(lead):
        return True
    text = look.error.lower()
    if any(part in text for part in REACHED) or not lead.container_is_ready:
        return True
    if not _was_heard(facts, lead, now):
        return False
    since, bound = max(look.unanswered_since, look.answered_at), seconds(facts.spec.policy.hung_after)
    asked_at = sane(look.asked_at, now)  # the others' times move with the clock when the next of all is asked, this look's as well
    if facts.others_asked_at <= max(since, asked_at - max(bound / 2.0, RARELY_SECONDS)):
        return asked_at - since > ALONE * bound
    return since + bound / 2.0 < facts.others_answered_at <= now


def _was_heard(facts: RunFacts, lead: PodFacts, now: float) -> bool:
    """By this operator, or by one before it since the pod's container started."""
    if facts.progress.document is not None and facts.progress.pod_uid == lead.uid:
        return True
    return epoch(facts.status.timing.last_progress_at) > sane(lead.started_at or lead.created_at, now)
