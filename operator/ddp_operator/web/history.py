"""What the dashboard remembers of each run, so that a curve can be drawn: losses and times of checkpoints. In memory, bounded, thinned.

It begins anew with the process: a picture, not a record (the run's own report has every point).
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Iterable, Sequence

from ddp_operator.decide.facts import RunFacts
from ddp_operator.web.texts import seconds_of

LOSS_POINTS = 120
"""More than the pixels of a sparkline need; 2 KB a run."""
CHECKPOINTS = 60


class Curve:
    """(step, loss) in the order of steps, at most `LOSS_POINTS`: when full, every second point goes, and new ones come half as often."""

    __slots__ = ("_losses", "_spacing", "_steps")

    def __init__(self) -> None:
        self._steps, self._losses = array("d"), array("d")
        self._spacing = 1.0

    def add(self, step: int, loss: float | None) -> None:
        """Note a loss. A step that lies before noted ones was trained again: the later ones are forgotten. Odd numbers are left out."""
        if loss is None or not math.isfinite(loss) or not 0 <= step <= 2**53:
            return
        while self._steps and self._steps[-1] >= step:
            if self._steps[-1] == step:
                self._losses[-1] = loss
                return
            self._steps.pop()
            self._losses.pop()
        if self._steps and step - self._steps[-1] < self._spacing:
            return
        self._steps.append(step)
        self._losses.append(loss)
        if len(self._steps) > LOSS_POINTS:
            self._steps, self._losses = self._steps[::2], self._losses[::2]
            self._spacing = 2 * (self._steps[-1] - self._steps[0]) / LOSS_POINTS

    def points(self) -> list[tuple[float, float]]:
        """As noted."""
        return list(zip(self._steps, self._losses, strict=True))


class History:
    """Of all runs, by uid."""

    def __init__(self) -> None:
        self._curves: dict[str, Curve] = {}
        self._saved: dict[str, deque[float]] = {}

    def note(self, runs: Iterable[RunFacts]) -> None:
        """Look at all runs; those that are not given any more are forgotten."""
        curves, saved = {}, {}
        for run in runs:
            curve = curves[run.uid] = self._curves.get(run.uid) or Curve()
            document = run.progress.document
            if document is not None:
                curve.add(document.step, document.loss)
            times = saved[run.uid] = self._saved.get(run.uid) or deque(maxlen=CHECKPOINTS)
            if run.status.checkpoint is not None:
                at = seconds_of(run.status.checkpoint.saved_at)
                if not times or at > times[-1]:
                    times.append(at)
        self._curves, self._saved = curves, saved

    def losses(self, uid: str) -> list[tuple[float, float]]:
        """(step, loss) of a run, oldest first."""
        return self._curves[uid].points() if uid in self._curves else []

    def checkpoints(self, uid: str) -> Sequence[float]:
        """When it saved, in seconds since the epoch, oldest first."""
        return tuple(self._saved.get(uid, ()))
