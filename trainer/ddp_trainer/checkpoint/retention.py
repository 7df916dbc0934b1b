"""Which checkpoints may go: a pure decision over what there is."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """What is kept besides the newest one that verified: the `keep` newest, multiples of `every`, and the best by `best` metric."""

    keep: int = 3
    every: int | None = None
    best: str | None = None

    def removable(self, checkpoints: Mapping[int, Mapping[str, float]], verified: AbstractSet[int]) -> list[int]:
        """Steps that may be removed, oldest first.

        Args:
            checkpoints: the metrics of each step's checkpoint.
            verified: steps whose files were seen to be good; the newest of them is never removed.
        """
        steps = sorted(checkpoints)
        kept = {*steps[-self.keep :], *self._milestones(steps), *self._best(checkpoints), *_last_verified(steps, verified)}
        return [step for step in steps if step not in kept]

    def spare(self, checkpoints: Mapping[int, Mapping[str, float]], verified: AbstractSet[int]) -> list[int]:
        """What a full disk may take, in this order: also of the `keep` newest, down to the newest that verified.

        Milestones and the best one stay: they were promised, and whoever wants their space can remove them.
        """
        steps = sorted(checkpoints)
        last_good = _last_verified(steps, verified) or set(steps[-1:])
        kept = {*self._milestones(steps), *self._best(checkpoints), *last_good}
        return [step for step in steps if step not in kept]

    def _milestones(self, steps: list[int]) -> set[int]:
        return {step for step in steps if self.every and step % self.every == 0}

    def _best(self, checkpoints: Mapping[int, Mapping[str, float]]) -> set[int]:
        values = {step: metrics[self.best] for step, metrics in checkpoints.items() if self.best and self.best in metrics}
        if not values:
            return set()
        sign = -1.0 if "loss" in str(self.best) else 1.0
        return {max(values, key=lambda step: (sign * values[step], step))}


def _last_verified(steps: list[int], verified: AbstractSet[int]) -> set[int]:
    good = [step for step in steps if step in verified]
    return set(good[-1:])
