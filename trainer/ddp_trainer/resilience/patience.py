"""How long a node waits for the others: a bound, which begins anew as long as node 0 says that it gets on with what keeps it from coming.

Node 0 counts in its store (`GenerationBarrier.beat`) while it makes the run directory ready, which may take a download of an hour. Who
waits looks at that count rarely, since a thousand nodes do; so one that stands still is left after the bound and at most a tenth of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LOOKS = 10
"""Looks at the count per bound: 33 requests per second of a thousand nodes that wait 300 s, where the store bears 2,000."""


class Patience:
    """One wait's. `signs` asks how often node 0 has given a sign of life, and may raise what the store does."""

    def __init__(self, bound_seconds: float, signs: Callable[[], int]) -> None:
        self.deadline = time.monotonic() + bound_seconds
        """When the wait is over, as far as is known (monotonic seconds)."""
        self.is_prolonged = False
        """Whether node 0 has given a sign of life in this wait."""
        self._bound_seconds = bound_seconds
        self._signs = signs
        self._seen: int | None = None
        self._looked_at = -bound_seconds

    def is_over(self) -> bool:
        """Whether to wait no longer. One small request at times, and always before it says so."""
        now = time.monotonic()
        if now >= self.deadline or now - self._looked_at >= self._bound_seconds / LOOKS:
            self._look(now)
        return now >= self.deadline

    def _look(self, now: float) -> None:
        self._looked_at = now
        signs = self._signs()
        # the first look only learns the count; fewer than before are signs as well, since node 0 has been replaced and counts anew
        if self._seen is not None and signs not in {0, self._seen}:
            self.deadline = now + self._bound_seconds
            self.is_prolonged = True
        self._seen = signs
