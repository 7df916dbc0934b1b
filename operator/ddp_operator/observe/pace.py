"""How much more rarely all is looked at, and numbers are renewed, where there are very many runs.

Questions and writes grow with the runs, and one process and one API server bear so many a second: beyond that, numbers had better be
older than changes late. What happens to pods and jobs is told by watches and is not slowed.
"""

from __future__ import annotations

from typing import Final

RUNS_AT_FULL_PACE: Final = 1_000
"""Runs whose node 0 is asked: a quarter of a core, and 60 writes a second."""


def stretched(seconds: float, runs: int) -> float:
    """A pause, for so many runs that are asked."""
    return seconds * max(1.0, runs / RUNS_AT_FULL_PACE)
