"""What the dashboard remembers of each run, so that a curve can be drawn: losses and times of checkpoints. In memory, bounded, thinned.

It begins anew with the process: a picture, not a record (the run's own report has every point).
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Iterable, Sequence

from ddp_operator.decide.facts import ProgressFacts

Key = tuple[str, str]

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
    """Of all runs, by namespace and name. It looks at node 0's documents only: to unpack every run's status for it costs a second."""

    def __init__(self) -> None:
        self._curves: dict[Key, Curve] = {}
        self._saved: dict[Key, deque[float]] = {}

    def note(self, documents: Iterable[tuple[str, str, ProgressFacts | None]]) -> None:
        """Look at the last document of every run (namespace, name, document); runs that are not given any more are forgotten."""
        curves: dict[Key, Curve] = {}
        saved: dict[Key, deque[float]] = {}
        for namespace, name, document in documents:
            key = (namespace, name)
            curve = curves[key] = self._curves.get(key) or Curve()
            times = saved[key] = self._saved.get(key) or deque(maxlen=CHECKPOINTS)
            if document is None:
                continue
            curve.add(document.step, document.loss)
            at = document.checkpoint_saved_at
            if math.isfinite(at) and at > (times[-1] if times else 0.0):
                times.append(at)
        self._curves, self._saved = curves, saved

    def losses(self, namespace: str, name: str) -> list[tuple[float, float]]:
        """(step, loss) of a run, oldest first."""
        curve = self._curves.get((namespace, name))
        return curve.points() if curve else []

    def checkpoints(self, namespace: str, name: str) -> Sequence[float]:
        """When it saved, in seconds since the epoch, oldest first."""
        return tuple(self._saved.get((namespace, name), ()))
