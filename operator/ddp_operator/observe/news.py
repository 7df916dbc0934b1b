"""What of a run's progress is news, to be told at once, and what are mere numbers, which can wait until they are renewed anyway.

A thousand runs that train move their numbers a hundred times a second. If each of these were decided and written, the change of a pod
would wait behind them for seconds, and nobody reads a step counter that fast.
"""

from __future__ import annotations

from ddp_operator.api.trainingrun import TrainingRunStatus
from ddp_operator.api.words import Phase
from ddp_operator.decide.facts import ProgressFacts, ProgressLook


def is_awaited(status: TrainingRunStatus) -> bool:
    """Whether the next sign of life decides something: in every phase but Running, and as long as a loss is not made good."""
    return status.phase is not Phase.RUNNING or status.incident is not None


def is_news(before: ProgressLook, after: ProgressLook) -> bool:
    """Whether more than numbers has changed."""
    return (before.pod_uid, before.error, before.unanswered_since) != (after.pod_uid, after.error, after.unanswered_since) or _words(
        before.document
    ) != _words(after.document)


def has_moved(before: ProgressLook, after: ProgressLook) -> bool:
    """Whether anything was said that was not said before; that it was asked and has answered again is nothing."""
    return before.heard_at != after.heard_at or before.document != after.document


def _words(document: ProgressFacts | None) -> tuple[object, ...]:
    if document is None:
        return ()
    return document.phase, document.attempt, document.world_size, document.restarts, document.checkpoint_step is None
