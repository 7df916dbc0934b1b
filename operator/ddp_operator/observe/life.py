"""Signs of life of everything that must never stop in silence.

A watcher that dies while its process lives is the worst fault of an operator: it looks healthy and sees nothing. So each one beats, each
time that it hears something or tries again, and the liveness probe asks who has been silent for too long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class _Watch:
    stale_seconds: float
    beat_at: float


class Life:
    """Who is expected to beat, and when each last did. `clock` gives seconds and should be monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._watched: dict[str, _Watch] = {}

    def expect(self, name: str, stale_seconds: float) -> None:
        """From now on `name` must beat at least this often; asking again changes the bound and counts as a beat."""
        self._watched[name] = _Watch(stale_seconds, self._clock())

    def forget(self, name: str) -> None:
        """It has stopped on purpose."""
        self._watched.pop(name, None)

    def beat(self, name: str) -> None:
        """A sign of life; from somebody who is not expected it means nothing."""
        if watch := self._watched.get(name):
            watch.beat_at = self._clock()

    def ages(self) -> dict[str, float]:
        """Seconds since the last sign of life of each."""
        now = self._clock()
        return {name: max(0.0, now - watch.beat_at) for name, watch in self._watched.items()}

    def silent(self) -> list[str]:
        """One sentence for each that has been silent for too long; empty is healthy."""
        return [
            f"{name} has given no sign of life for {age:.0f} s (expected every {bound:.0f} s)"
            for name, age in self.ages().items()
            if age > (bound := self._watched[name].stale_seconds)
        ]
