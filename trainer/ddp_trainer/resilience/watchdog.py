"""Whether a rank of this node stands still: decided from the facts that the ranks publish, without a clock of its own.

A rank lives as long as its facts change. Their time stamps are compared with themselves only, never with the watcher's clock, so a clock
that is set, or differs between processes, raises no alarm. Time counts only while the watcher itself was there to look: where its look
comes late (the process was stopped, the machine suspended or starved), the ranks had no fair chance either, and the gap is left out. The
price: a watcher that never looks in time never judges; the bound of the collectives is behind it then.

A crash is not its business (the agent sees that at once), nor is who is to blame: see `stacks.suspect`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ddp_trainer.config import FaultToleranceSection

LATE_SECONDS = 2.0
"""A look this long after the one before it is late: twenty monitor intervals."""
WINDOW_STEPS = 31
"""Step times (as seen, so each may be the mean of several short steps) that the median is of: it follows a machine that has become slower
for good after 16 of them, and is deaf to 15 odd ones."""
TRUSTED_STEPS = 3
"""Until so many are known, the first step, which is never shorter, stands in: the second one may compile again, or tune kernels."""
_LIFELESS = frozenset({"updated_at"})
"""What a rank that waits for the disk goes on to publish without getting anywhere."""


@dataclass(frozen=True)
class Stall:
    """A rank that stands still. `rank` is the global one, None if it never said it; `step` is the last that it was seen to have done."""

    rank: int | None
    local_rank: int
    phase: str
    step: int
    still_seconds: float
    """Counted while the watcher looked."""
    limit_seconds: float


@dataclass
class _Watched:
    """What is known of one rank in this attempt. Times are counted seconds."""

    facts: dict[str, Any] | None = None
    moved_at: float = 0.0
    first_step_seconds: float | None = None
    """From the rank's last word before its first step to that step; None until it is done, infinite if a late look hid how long it took."""
    is_interrupted: bool = False
    """A late look since the last sign of life: how long that took is not known."""
    step_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW_STEPS))

    @property
    def phase(self) -> str:
        return str((self.facts or {}).get("phase") or "starting")

    @property
    def step(self) -> int:
        return int((self.facts or {}).get("step") or 0)


class Watchdog:
    """Watches the ranks of one node through one attempt after the other. `policy`: how long each phase may stand still."""

    def __init__(self, policy: FaultToleranceSection) -> None:
        self._policy = policy
        self.reset()

    def reset(self) -> None:
        """A new attempt begins: nothing that was seen of the last one says anything about it."""
        self._ranks: dict[int, _Watched] = {}
        self._looked_at: float | None = None
        self._counted_seconds = 0.0

    def look(self, facts_by_local_rank: Mapping[int, Mapping[str, Any] | None], now: float) -> Stall | None:
        """The rank that stands still beyond its limit, the longest first; None if all is well.

        Args:
            facts_by_local_rank: the newest facts of every rank that runs; None for one that has not said anything in this attempt. A rank
                that is left out has ended.
            now: seconds of a clock that only the watcher reads, `time.monotonic()`.
        """
        is_late = self._count(now)
        self._ranks = {
            local_rank: self._ranks.get(local_rank) or _Watched(moved_at=self._counted_seconds) for local_rank in facts_by_local_rank
        }
        for local_rank, facts in facts_by_local_rank.items():
            watched = self._ranks[local_rank]
            watched.is_interrupted = watched.is_interrupted or is_late
            if facts is not None:  # a page that cannot be read just now is neither a sign of life nor of death
                self._ranks[local_rank] = self._heard(watched, dict(facts))
        stalls = [stall for local_rank, watched in self._ranks.items() if (stall := self._stall(local_rank, watched))]
        return max(stalls, key=lambda stall: (stall.still_seconds, -stall.local_rank), default=None)

    def _count(self, now: float) -> bool:
        """Add the time since the last look, unless it came late; says whether it did."""
        passed = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        is_late = passed > LATE_SECONDS
        self._counted_seconds += 0.0 if is_late else passed
        return is_late

    def _heard(self, watched: _Watched, facts: dict[str, Any]) -> _Watched:
        before = watched.facts
        if before is not None and any(facts.get(key) != before.get(key) for key in ("attempt", "pid")):
            # another process has taken its place: its predecessor's pace is not its own
            watched, before = _Watched(is_interrupted=True), None
        elif not _has_moved(before, facts):
            watched.facts = facts
            return watched
        was_training, step_before = watched.phase == "training", watched.step
        seconds, is_interrupted = self._counted_seconds - watched.moved_at, watched.is_interrupted
        watched.facts, watched.moved_at, watched.is_interrupted = facts, self._counted_seconds, False
        if watched.phase != "training" or watched.step <= step_before:
            return watched
        if watched.first_step_seconds is None:
            watched.first_step_seconds = math.inf if is_interrupted else seconds
        elif was_training and not is_interrupted:
            watched.step_seconds.append(seconds / (watched.step - step_before))
        return watched

    def _stall(self, local_rank: int, watched: _Watched) -> Stall | None:
        limit_seconds = self._limit_seconds(watched)
        still_seconds = self._counted_seconds - watched.moved_at
        if limit_seconds is None or still_seconds <= limit_seconds:
            return None
        rank = (watched.facts or {}).get("rank")
        return Stall(rank, local_rank, watched.phase, watched.step, still_seconds, limit_seconds)

    def _limit_seconds(self, watched: _Watched) -> float | None:
        """How long this rank may stand still in what it does; None for ever."""
        policy = self._policy
        limits = {
            "starting": policy.start_limit_seconds,
            "training": self._step_limit_seconds(watched),
            "evaluating": policy.evaluate_limit_seconds,
            "saving": policy.save_limit_seconds,
        }
        limit_seconds = limits.get(watched.phase)
        if limit_seconds is not None and watched.first_step_seconds is None:
            return max(limit_seconds, policy.start_limit_seconds)  # also where it resumed right before an evaluation: that compiles now
        return limit_seconds

    def _step_limit_seconds(self, watched: _Watched) -> float:
        policy, known = self._policy, watched.step_seconds
        usual_seconds = policy.hang_factor * median(known) if known else 0.0
        if len(known) < TRUSTED_STEPS:
            first_seconds = watched.first_step_seconds or 0.0
            usual_seconds = max(usual_seconds, min(policy.start_limit_seconds, policy.hang_factor * first_seconds))
        return max(policy.hang_floor_seconds, usual_seconds)


def _has_moved(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> bool:
    if before is None or after.get("phase") != "saving":
        return before != after
    # it repeats itself while it waits for the disk, so that only what it says counts: else a dead disk would be waited for without end
    return any(before.get(key) != after.get(key) for key in (before.keys() | after.keys()) - _LIFELESS)
