"""The run's own time: seconds since its first event, in which a pause between two invocations does not count. Pure.

A diary is read without believing it: a value of the wrong type is None, a line without a time is passed over, and a clock that was set back
costs the one gap in which that happened. The order of the lines is the order of things, since all writers append to one file.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ddp_trainer.errors import HANG, PEER_LOST, RANK_CRASHED

LONGEST_SILENCE_SECONDS = 3600.0
"""A silence that is longer than this before a `start` is a pause of the user, not a recovery: run time skips it."""
LATEST_TIME = 1e11
"""The year 5138. A time beyond it is no time, and sums of such numbers would no longer be finite."""
OUTAGE_EXITS = frozenset({RANK_CRASHED.code, HANG.code, PEER_LOST.code})
"""A stop with one of these is a fault that the cluster answers with a new start; any other stop is an end, for now."""

Record = Mapping[str, Any]
Moment = tuple[float, Record]
"""Run seconds, and what happened then."""


class RunClock:
    """Run time of every event, and of any other wall time. `moments` are the dated events in their order; their seconds never fall."""

    def __init__(self, events: Iterable[Record], metrics: Iterable[Record] = ()) -> None:
        dated = [(time, event) for event in events if (time := time_of(event)) is not None]
        signs = sorted(time for line in metrics if (time := time_of(line)) is not None)
        self.origin = min([*(time for time, _ in dated[:1]), *signs[:1]], default=0.0)
        """Wall time of run second 0, seconds since 1970; 0 where nothing is dated."""
        self.moments: list[Moment] = []
        before, seconds, is_over = self.origin, 0.0, False
        self._anchors: list[tuple[float, float]] = [(before, 0.0)]
        for time, event in dated:
            passed = max(0.0, time - before)
            if event.get("kind") == "start":
                last_sign = signs[index - 1] if (index := bisect_right(signs, time)) else before
                silence = time - max(before, last_sign)
                passed -= silence if is_over or silence > LONGEST_SILENCE_SECONDS else 0.0
                is_over = False
            is_over = is_over or is_ending(event)
            before, seconds = time, seconds + max(0.0, passed)
            self.moments.append((seconds, {**event, "kind": text(event.get("kind")) or "unknown"}))
            while self._anchors and self._anchors[-1][0] >= time:  # the clock was set back: what it says from here on means now
                self._anchors.pop()
            self._anchors.append((time, seconds))
        self.end_seconds = max([seconds, *(self(time) for time in signs)])
        """The last that is known of the run."""

    def __call__(self, time: float) -> float:
        """Run seconds at wall time `time` (seconds since 1970), by the newest event that is not later."""
        index = bisect_right(self._anchors, (time, math.inf))
        if not index:
            return 0.0
        begin, seconds = self._anchors[index - 1]
        most = self._anchors[index][1] if index < len(self._anchors) else math.inf  # a pause has no length
        return min(seconds + time - begin, max(most, seconds))


def is_ending(event: Record) -> bool:
    """Whether the run was over with this event, rather than in an outage."""
    return event.get("kind") == "finish" or (event.get("kind") == "stop" and whole(event.get("exit")) not in OUTAGE_EXITS)


def time_of(record: Record) -> float | None:
    """Wall time in seconds since 1970, or None where the record carries none that can be true."""
    time = number(record.get("time"))
    return time if time is not None and 0 <= time < LATEST_TIME else None


def steps_of(records: Iterable[Record], clock: RunClock) -> list[tuple[float, int]]:
    """(run seconds, step) of the lines that carry both, in their order."""
    dated: Sequence[tuple[float | None, int | None]] = [(time_of(r), whole(r.get("step"))) for r in records]
    return [(clock(time), step) for time, step in dated if time is not None and step is not None]


def number(value: Any) -> float | None:
    """A finite number, or None for anything else (NaN, text, a boolean)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def whole(value: Any) -> int | None:
    """A whole number, or None."""
    found = number(value)
    return int(found) if found is not None and found == int(found) else None


def text(value: Any) -> str | None:
    """A string that is not empty, or None."""
    return value if isinstance(value, str) and value else None
