"""How fast the steps go: a smoothed step time, its histogram, and from both the time that is left. Pure arithmetic, no clock."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from statistics import median
from typing import Any

BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the step time's histogram: a small GPU step to a large model's on a laptop."""
SMOOTHING_SECONDS = 10.0
"""The step time is averaged over about this long: steady enough to read, quick enough to show a neighbour's load."""
MIN_SMOOTHING_STEPS = 5.0
"""... but over at least this many steps, where one step takes seconds."""

USUAL_STEPS = 9
"""The median of so many steps is the usual one: half of them would have to be held up at once to move it."""


class Pace:
    """Fed with the time of each step's end; time between `paused` and the next step's end is not counted."""

    def __init__(self) -> None:
        self.step_seconds: float | None = None
        """Smoothed; None until a whole step was seen (the first one carries start-up and compilation, and is not counted)."""
        self._recent: deque[float] = deque(maxlen=USUAL_STEPS)
        self._evaluation_seconds = 0.0
        self._last: float | None = None
        self._counts = [0] * (len(BUCKETS_SECONDS) + 1)
        self._sum = 0.0

    def paused(self, now: float) -> None:  # noqa: ARG002 (says when, for a reader of the call)
        """Something else than steps begins, so the next step's end says nothing about its length."""
        self._last = None

    def stepped(self, now: float) -> None:
        """A step ended at `now` (seconds)."""
        last, self._last = self._last, now
        if last is None:
            return
        seconds = max(now - last, 1e-9)  # a wall clock may be set back
        self._sum += seconds
        self._recent.append(seconds)
        self._counts[bisect_left(BUCKETS_SECONDS, seconds)] += 1
        if self.step_seconds is None:
            self.step_seconds = seconds
        else:
            # of usual steps: one of a minute, in a laptop that slept, would else be remembered for five
            window = max(SMOOTHING_SECONDS, MIN_SMOOTHING_STEPS * median(self._recent))
            self.step_seconds += (seconds - self.step_seconds) * (1 - math.exp(-seconds / window))

    @property
    def usual_step_seconds(self) -> float | None:
        """What most steps take now, whatever has held up one of them; None until a whole step was seen."""
        return median(self._recent) if self._recent else None

    def evaluated(self, seconds: float) -> None:
        """An evaluation took this long, and the coming ones will as well."""
        self._evaluation_seconds = seconds

    def eta_seconds(self, step: int, total_steps: int, steps_per_evaluation: float) -> float | None:
        """From the end of `step` to the end of the run, evaluations included; None while the pace or the plan is unknown."""
        if self.step_seconds is None or total_steps == 0:
            return None
        if step >= total_steps:
            return 0.0
        every = max(1.0, steps_per_evaluation)
        evaluations = math.ceil(total_steps / every) - math.floor(step / every)
        return (total_steps - step) * self.step_seconds + evaluations * self._evaluation_seconds

    def histogram(self) -> dict[str, Any]:
        """`counts` per bucket (not cumulative, the last one is above all bounds) and the `sum` of seconds; bounds are BUCKETS_SECONDS."""
        return {"counts": list(self._counts), "sum": self._sum}
