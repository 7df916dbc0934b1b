"""The cases: each takes a `Drill`, disturbs real runs, and yields rows of the table. What a case shows is its docstring."""

from collections.abc import Callable, Iterator

from drill import Drill
from table import Row

from cases import clocks, commits, disks, elastic, files, hangs, kills, network, preemption, values, worlds

Case = Callable[[Drill], Iterator[Row]]
CASES: dict[str, Case] = {
    case.__name__: case
    for module in (kills, hangs, preemption, commits, files, disks, clocks, network, values, worlds, elastic)
    for case in module.CASES
}
PARTS = {"one_window", "flipped", "half_the_world"}
"""Rows of other cases on their own, for the short form: not in the whole."""
