"""What is printed at the end: the table of all cases, and the exit code of each pod for each fault."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from release import Release
from watching import said


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    case: str
    expected: str
    seen: str
    seconds: float | None = None
    good: bool = True
    slow: bool = False
    """Right, but not within its bound: a failure of the full form, only said by the short one, whose machine may be any."""
    ran: bool = True
    """False where something that the case needs is not here: a failure of the full form, which is to prove all."""

    @property
    def verdict(self) -> str:
        """The last column."""
        return "NOT RUN" if not self.ran else "BAD" if not self.good else "slow" if self.slow else "ok"

    @property
    def line(self) -> str:
        """As Markdown."""
        seconds = "" if self.seconds is None else f"{self.seconds:.1f}"
        cells = (self.case, self.expected, self.seen, seconds, self.verdict)
        return "| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |"


def table(rows: Iterable[Row]) -> str:
    """As Markdown."""
    return "\n".join(["| case | expected | seen | seconds | |", "|---|---|---|---|---|", *(row.line for row in rows)])


FaultLine = tuple[str, dict[str, list[int]]]
"""A fault's name and the exit codes that pods ended with in its time, by place."""


def fault_lines(case: str, release: Release) -> list[FaultLine]:
    """The faults of a case, with what is known of them now."""
    return [(f"{case}: {fault.name}", fault.codes(release.diary.exits)) for fault in release.faults]


def exit_table(lines: list[FaultLine]) -> str:
    """As Markdown: a column for each place, `-` for a pod that went on, nothing where there was no such pod."""
    places = sorted({place for _, codes in lines for place in codes}, key=lambda place: (place.split("-")[0], int(place.split("-")[1])))
    rows = [[name, *(said(codes[place]) if place in codes else "" for place in places)] for name, codes in lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [["exit codes", *places], ["---"] * (len(places) + 1), *rows])


def judged(release: Release) -> Row | None:
    """One fault must never show as code 1, an error of the user's code, in a pod that it did not hit. Asked when late codes are in."""
    if not release.faults:
        return None
    ones = [
        f"{place} in {fault.name}"
        for fault in release.faults
        for place, codes in fault.codes(release.diary.exits).items()
        if 1 in codes and place != fault.target
    ]
    return Row(f"exit codes of {len(release.faults)} faults", "no 1 in another pod", ", ".join(ones) or "none", good=not ones)
