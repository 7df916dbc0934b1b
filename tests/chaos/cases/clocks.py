"""The clock of the whole run is set back by an hour, and then something happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from drill import Drill
from runs import Run
from table import Row, Sight

from cases.survival import DISTURBED_AT, goes_on, kill


def set_back(drill: Drill) -> Iterator[Row]:
    """An hour back, then SIGKILL of a rank: waits and intervals are not the clock's business."""
    flag = drill.new_folder("clock")

    def disturb(run: Run, flag: Path = flag) -> None:
        flag.touch()
        run.trained_to(DISTURBED_AT + 8)
        kill("ddp-rank-2")(run)

    def was_set_back(run: Run, sight: Sight) -> None:
        times = [event["time"] for event in run.events]
        sight.fact("events show it" if times != sorted(times) else "the clock was not set back", times != sorted(times))

    yield goes_on(drill, "clock back by an hour, then SIGKILL of rank 2", disturb, plan={"clock_back": str(flag)}, check=was_set_back)


CASES = (set_back,)
