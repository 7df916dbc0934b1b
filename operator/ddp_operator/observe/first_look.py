"""What the first document of a run says that an operator before this one called hung: that it answers is no sign of training.

Else each new operator would call the run Running, for another `hungAfter`, and one that is restarted more often would never act.
"""

from __future__ import annotations

from ddp_operator.api.words import Phase
from ddp_operator.decide.facts import PodFacts, ProgressFacts, RunFacts
from ddp_operator.decide.timing import epoch


def hung_since(facts: RunFacts | None, pod: PodFacts, document: ProgressFacts) -> float | None:
    """Since when it hangs if this document does not move; None: it is a run that goes on, or other pods than those that hung."""
    if facts is None or facts.status.phase is not Phase.HUNG or facts.status.progress is None:
        return None
    shown, since = facts.status.progress, epoch(facts.status.timing.last_progress_at)
    is_same = (shown.step, shown.attempt) == (document.step, document.attempt)
    return since if is_same and since > pod.started_at else None
