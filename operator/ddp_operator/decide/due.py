"""When time alone may change a decision: the soonest of all bounds that run."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ddp_operator.api.words import FINAL_PHASES, Phase
from ddp_operator.decide import cleanup, deadlines, incidents, nodes
from ddp_operator.decide.durations import seconds
from ddp_operator.decide.facts import RunFacts
from ddp_operator.decide.timing import epoch

SOONEST_SECONDS = 1.0
LATER_SECONDS = 0.5
"""So much after a bound: at the bound itself nothing is over yet."""
UNDER_WAY_SECONDS = 5.0
"""An action was sent, or its effect is awaited: it is seen by a watch at once, and this is for when it is not."""
OF_PHASE: dict[Phase, float] = {
    Phase.PENDING: 15.0,
    Phase.STARTING: 15.0,
    Phase.RESTARTING: 15.0,
    Phase.SUSPENDED: 300.0,
    Phase.SUCCEEDED: 300.0,
    Phase.FAILED: 300.0,
}
"""Without a bound that runs; others are looked at each minute. What happens marks a run at once: this only catches the rest."""
ASKED_SECONDS = 12.0
"""How often node 0 is asked, and the longest that an answer takes."""
REST_SECONDS = 60.0


def look_again_seconds(facts: RunFacts, now: float, *, is_under_way: bool, renewal_at: float | None) -> float:
    """`facts.status` is the status that was decided. `renewal_at` is when held numbers may be written."""
    rest = OF_PHASE.get(facts.status.phase, REST_SECONDS)
    all_bounds = (*_bounds(facts, now), *([] if renewal_at is None else [renewal_at]))
    bounds = [at - now + LATER_SECONDS for at in all_bounds if math.isfinite(at) and at >= now]
    soonest = min([rest, *bounds, *([UNDER_WAY_SECONDS] if is_under_way else [])])
    return max(SOONEST_SECONDS, math.ceil(soonest * 10.0) / 10.0)


def _bounds(facts: RunFacts, now: float) -> Iterator[float]:
    status, policy = facts.status, facts.spec.policy
    for pod in facts.pods:
        yield pod.deleted_at
        yield nodes.stuck_at(pod, policy)
    if status.timing.finished_at and any(cleanup.holds(pod) for pod in facts.pods):
        yield epoch(status.timing.finished_at) + cleanup.GRACE_SECONDS
    if status.phase in FINAL_PHASES or status.phase is Phase.SUSPENDED:
        return
    if status.overdue is None:
        yield from deadlines.due_at(status.timing, policy, now).values()
    hung_after = seconds(policy.hung_after)
    started = [pod.started_at for pod in facts.pods]
    for since in (facts.progress.heard_at, facts.progress.answered_at, max(started, default=0.0), epoch(status.timing.gathered_at)):
        yield since + hung_after
        yield since + hung_after + ASKED_SECONDS  # node 0 is to have been asked once more by then
    if facts.progress.error:
        yield now + ASKED_SECONDS  # the same silence, once more, marks nobody; and yet it is by the last question that a run hangs
    if status.incident is not None:
        yield epoch(status.incident.last_loss_at) + incidents.GAP_SECONDS
        gathered_at = epoch(status.incident.gathered_at)
        yield gathered_at + incidents.GAP_SECONDS
        yield gathered_at + hung_after
    if status.checkpoint is not None:
        yield epoch(status.checkpoint.saved_at) + seconds(facts.spec.checkpoint.stale_after)
