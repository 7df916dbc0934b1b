"""Durations as people write them (1h30m) and as sentences speak of them."""

from __future__ import annotations

import math
import re

_UNIT_SECONDS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])")
LONGEST_SECONDS = 100 * 366 * 86_400.0
"""A hundred years stand for "for ever"; anything longer would only overflow somewhere."""


def seconds(text: str) -> float:
    """What "1h30m" is: 5400.0; at most a hundred years.

    Raises:
        ValueError: if it is no duration. The API server refuses such a spec, so only our own mistakes get here.
    """
    parts = _PART.findall(text)
    if not parts or "".join(amount + unit for amount, unit in parts) != text:
        raise ValueError(f"{text[:32]!r} is no duration; write it like 90s, 5m, 1h30m or 2d")
    return min(math.fsum(float(amount) * _UNIT_SECONDS[unit] for amount, unit in parts), LONGEST_SECONDS)


def spoken(duration_seconds: float) -> str:
    """The two largest units, rounded down: "45s", "5m", "1h1m", "2d3h". Negative ones are "0s"; what is no number is ""."""
    if math.isnan(duration_seconds):
        return ""
    left = int(min(max(duration_seconds, 0.0), LONGEST_SECONDS))
    words: list[str] = []
    for unit, length in _UNIT_SECONDS.items():
        amount, left = divmod(left, int(length))
        if amount or words:
            words.append(f"{amount}{unit}" if amount else "")
    return "".join(words[:2]) or "0s"
