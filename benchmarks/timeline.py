"""One start or restart of a run as a line of marks, cut into the parts that startup.py and recovery.py print.

The marks are node 0's events (fault, form) and what rank 0 notes about itself (peers/stamped.py), all by the machine's one clock. The parts
are consecutive, so they add up to the whole, and nothing is hidden between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PARTS = (
    ("processes, imports, agents", "began", "form"),
    ("noticed and judged", "began", "fault"),
    ("nodes met", "fault", "form"),
    ("ranks forked", "form", "rank runs"),
    ("data opened", "rank runs", "data ready"),
    ("ranks met, newest state found", "data ready", "model begun"),
    ("model built", "model begun", "model built"),
    ("state put in place, DDP wrapped and settled", "model built", "batch"),
    ("the step", "batch", "stepped"),
)
"""Name, first mark, last mark. A first start has no fault; a restart's clock begins at the kill."""
NOT_MACHINERY = frozenset({"model built", "the step"})


@dataclass(frozen=True)
class Incident:
    """Marks of one start or restart, in seconds since it began."""

    marks: Mapping[str, float]

    @property
    def total_seconds(self) -> float:
        """To the end of the first step."""
        return self.marks["stepped"]

    def parts(self) -> dict[str, float]:
        """Seconds by part, in order."""
        restart = "fault" in self.marks
        skipped = {"processes, imports, agents"} if restart else {"noticed and judged", "nodes met"}
        return {name: self.marks[last] - self.marks[first] for name, first, last in PARTS if name not in skipped}

    @property
    def machinery_seconds(self) -> float:
        """All but model building and the step."""
        return sum(seconds for name, seconds in self.parts().items() if name not in NOT_MACHINERY)
