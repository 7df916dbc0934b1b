"""The suite's one table: a row for each fault, printed when it is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

COLUMNS = ("fault", "expected", "seen", "recovery s", "lost steps", "")
HEAD = "\n".join("| " + " | ".join(cells) + " |" for cells in (COLUMNS, ("---",) * len(COLUMNS)))


@dataclass(frozen=True)
class Row:
    """What was done, what should have come of it, and what came."""

    fault: str
    expected: str
    seen: str
    recovery_seconds: float | None = None
    """From the fault to the first new step; None where there is none."""
    lost_steps: int | None = None
    """Steps done before the fault and done again after it."""
    good: bool = True
    ran: bool = True
    """False where this machine lacks what the fault needs: said, and not counted against the run."""

    @property
    def line(self) -> str:
        """As Markdown."""
        seconds = "" if self.recovery_seconds is None else f"{self.recovery_seconds:.1f}"
        lost = "" if self.lost_steps is None else str(self.lost_steps)
        verdict = "left out" if not self.ran else "ok" if self.good else "BAD"
        cells = (self.fault, self.expected, self.seen, seconds, lost, verdict)
        return "| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |"


def closing(rows: Sequence[Row], minutes: float) -> str:
    """The last line: what could not be tried here is no row that came out well."""
    ran, bad = sum(row.ran for row in rows), sum(not row.good for row in rows)
    left_out = f"{len(rows) - ran} left out, " if ran < len(rows) else ""
    return f"{ran} rows, {bad} not as expected, {left_out}{minutes:.1f} min"


@dataclass
class Sight:
    """Facts looked for after a fault, in words; what does not hold is said, and makes the row a bad one."""

    words: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def fact(self, words: str, holds: object) -> None:
        """`words` says what was found, whether or not it is what should be."""
        (self.words if holds else self.wrong).append(words)

    @property
    def seen(self) -> str:
        """All of it; what is wrong first."""
        return ", ".join([*(f"NOT AS EXPECTED: {words}" for words in self.wrong), *self.words])

    def row(self, fault: str, expected: str, recovery_seconds: float | None = None, lost_steps: int | None = None) -> Row:
        """The table's row of it."""
        return Row(fault, expected, self.seen, recovery_seconds, lost_steps, good=not self.wrong)


class LeftOutError(Exception):
    """This machine lacks what a case needs; the message says what."""
