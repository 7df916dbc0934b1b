"""Pauses between attempts: they double to a bound, and never end, since an operator that gives up is blind.

None is like the other, so that the attempts of many spread. What a server asks for (Retry-After) is honoured, within a bound of its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count
from typing import Final

FIRST_SECONDS: Final = 0.5
LONGEST_RETRY_AFTER_SECONDS: Final = 30.0
"""A server may ask for more patience than our own; not for so much that we would count as dead."""


class Backoff:
    """How long to wait after failures. To iterate over it, as kopf does, is to fail again and again."""

    def __init__(self, longest_seconds: float = 15.0, rng: random.Random | None = None) -> None:
        self._longest_seconds = longest_seconds
        self._rng = rng or random.Random()  # noqa: S311  jitter is no secret

    def after(self, failures: int, retry_after_seconds: float | None = None) -> float:
        """Seconds to wait after so many failures in a row, at least one."""
        longest = min(FIRST_SECONDS * 2.0 ** min(failures - 1, 16), self._longest_seconds)
        return max(longest * self._rng.uniform(0.5, 1.0), min(retry_after_seconds or 0.0, LONGEST_RETRY_AFTER_SECONDS))

    def __iter__(self) -> Iterator[float]:
        """Begin anew."""
        return map(self.after, count(1))
