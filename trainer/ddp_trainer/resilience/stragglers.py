"""Ranks that are slower than the others: named once, when it has lasted.

In lockstep training everybody waits for the slowest rank, so all of them show the same step time; what differs is each rank's own part of
a step. A rank whose own part takes `ratio` times the usual one is a straggler: a throttled GPU, a busy neighbour, a slow disk. That is
said, and nothing is done about it. Pure: no clock, no files.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

READINGS = 9
"""A rank's pace is the median of this many readings: four odd steps in a row do not show."""
LASTING_READINGS = 20
"""A rank is slow, or well again, when this many readings in a row say so (4 s at the 5 per second that ranks publish) ..."""
LASTING_SECONDS = 10.0
"""... or when it has lasted this long, where steps take seconds,"""
FEWEST_READINGS = 5
"""... with at least so many readings, more than half of a full window."""
RECOVERY_RATIO = 0.5
"""A rank is well again once less than this part of the excess is left: one that wavers around the limit is not named again and again."""
SMALLEST_EXCESS_SECONDS = 0.001
"""Below this a rank is not slow whatever the ratio: on a GPU, the own part of a small step is mostly gaps between launches, and jitters."""
FEWEST_FOR_MEDIAN = 3
"""Of two, the median lies between them, and a rank twice as slow as the other would be at 1.33 of it: two are compared with each other."""


@dataclass
class _Watched:
    readings: deque[float] = field(default_factory=lambda: deque(maxlen=READINGS))
    is_named: bool = False
    turned_at: float = 0.0
    """Since when its readings contradict `is_named`,"""
    turned_readings: int = 0
    """... and how many did."""


class Stragglers:
    """Watches all ranks. `ratio` above 1: how many times the median of all ranks is slow."""

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._last: list[float | None] = []
        self._ranks: list[_Watched] = []

    def look(self, seconds_by_rank: Sequence[float | None], now: float) -> list[tuple[int, float]]:
        """The ranks that have newly been found slow, with how many times the median they take.

        Args:
            seconds_by_rank: each rank's own part of a step, in rank order; None, 0 or not finite where it is not known. The same numbers
                as at the last look are no news: a step that takes long is looked at often.
            now: `time.monotonic()`.
        """
        seconds = [value if value is not None and math.isfinite(value) and value > 0 else None for value in seconds_by_rank]
        if len(seconds) != len(self._ranks):  # another world: what was seen of the last one is about other ranks
            self._ranks = [_Watched() for _ in seconds]
        elif seconds == self._last:
            return []
        self._last = seconds
        for watched, value in zip(self._ranks, seconds, strict=True):
            if value is not None:
                watched.readings.append(value)
        paces = {rank: median(watched.readings) for rank, watched in enumerate(self._ranks) if watched.readings}
        found = []
        for rank, pace in paces.items():
            usual = _usual(rank, paces)
            if usual is not None and seconds[rank] is not None and self._turns(self._ranks[rank], pace, usual, now):
                found.append((rank, pace / usual))
        return found

    def _turns(self, watched: _Watched, pace: float, usual: float, now: float) -> bool:
        """Take a reading in; says whether the rank is to be named now."""
        limit = 1 + (self._ratio - 1) * RECOVERY_RATIO if watched.is_named else self._ratio
        is_slow = pace > limit * usual and pace - usual > SMALLEST_EXCESS_SECONDS
        if is_slow == watched.is_named:
            watched.turned_readings = 0
            return False
        if watched.turned_readings == 0:
            watched.turned_at = now
        watched.turned_readings += 1
        lasted = now - watched.turned_at >= LASTING_SECONDS and watched.turned_readings >= FEWEST_READINGS
        if not (lasted or watched.turned_readings >= LASTING_READINGS):
            return False
        watched.is_named, watched.turned_readings = is_slow, 0
        return is_slow


def _usual(rank: int, paces: dict[int, float]) -> float | None:
    """What a rank is compared with; None if there is nobody else."""
    if len(paces) >= FEWEST_FOR_MEDIAN:
        return median(paces.values())
    return next((pace for other, pace in paces.items() if other != rank), None)
