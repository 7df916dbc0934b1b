"""Asking again: a pod that does not go is asked to once a minute, not with each look.

When it was asked stands in the memory, so a successor does not ask sooner. An operator that dies after it has written and before it has
asked costs that minute.
"""

from __future__ import annotations

from dataclasses import replace

from ddp_operator.api.trainingrun import TrainingRunStatus
from ddp_operator.decide.decision import Action, DeletePod
from ddp_operator.decide.facts import PodFacts, RunFacts
from ddp_operator.decide.incarnations import Incarnation, of, read
from ddp_operator.decide.wording import count

ASK_AGAIN_SECONDS = 60.0


def held_back(
    facts: RunFacts, memory: TrainingRunStatus, actions: tuple[Action, ...], now: float
) -> tuple[TrainingRunStatus, tuple[Action, ...]]:
    """The memory with what is asked for now, and the actions without the deletions that were asked for less than a minute ago."""
    pods = {pod.uid: pod for pod in facts.pods}
    words = dict(memory.incarnations)
    due: list[Action] = []
    for action in actions:
        pod = pods.get(action.uid) if isinstance(action, DeletePod) else None
        known = read(words.get(pod.replica, "")) if pod else None
        if isinstance(action, DeletePod) and pod and known and known.mark and known.uid == of(pod).uid:
            if _was_asked(known, pod, action, now):
                continue
            words[pod.replica] = str(replace(known, asked=count(now)))
        due.append(action)
    return memory if words == memory.incarnations else memory.model_copy(update={"incarnations": words}), tuple(due)


def _was_asked(known: Incarnation, pod: PodFacts, action: DeletePod, now: float) -> bool:
    is_harder = action.grace_seconds == 0 and known.asked < pod.deleted_at  # it was asked to leave in its own time, and that is over
    return now - ASK_AGAIN_SECONDS < known.asked <= now and not is_harder
