"""Pauses between attempts: they double to a bound, and none is like the other, so that the attempts of many runs spread."""

from __future__ import annotations

import random
from typing import Final

FIRST_SECONDS: Final = 0.5
LONGEST_SECONDS: Final = 30.0


def backoff_seconds(attempts: int) -> float:
    """After so many attempts that failed."""
    longest = min(FIRST_SECONDS * 2.0 ** min(attempts - 1, 10), LONGEST_SECONDS)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311
