"""How a node leaves when it is asked to: all ranks of the run keep their state after the step they are in, then end together.

The wish reaches the node's own ranks through its memory, and all others with the gradients of the next step, so it is agreed at one
step boundary without a collective of its own. A node whose ranks have nothing new goes at once; one whose ranks do not get to the end
of their step goes when its time is up, and what they kept last is written. One whose ranks have finished waits for the others to finish.

The time is counted from the signal, and everything on the way out has what is left of it: what takes longer is cut off by the cluster,
in the middle of whatever it is.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from ddp_trainer.resilience.chronicle import PRODUCTIVE_PHASES
from ddp_trainer.resilience.custody import Custody

_log = logging.getLogger(__name__)

STEP_SHARE = 0.5
"""Part of the preemption grace in which ranks may reach their next step; the rest is for the disk."""
LAST_SECONDS, LAST_SHARE = 1.0, 0.1
"""Of the grace, what is kept for the process itself to end: a second, and of a short one a tenth."""


class Departure:
    """One per agent. `ask` may be called from a signal handler."""

    def __init__(self, custody: Custody, grace_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.asked_by: str | None = None
        """The name of the signal that asked this node to leave; None: nobody did."""
        self._custody = custody
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._asked_at = 0.0
        self._has_told = False

    @property
    def is_asked(self) -> bool:
        """Whether this node shall leave."""
        return self.asked_by is not None

    @property
    def left_seconds(self) -> float:
        """What is left of the grace, without the end of the process itself; infinite while nobody has asked."""
        if not self.is_asked:
            return math.inf
        last_seconds = min(LAST_SECONDS, LAST_SHARE * self._grace_seconds)
        return max(0.0, self._asked_at + self._grace_seconds - last_seconds - self._clock())

    @property
    def write_seconds(self) -> float:
        """How long the newest state may take to the disk, so that the grace is enough even if it begins in the middle of that."""
        return self.left_seconds if self.is_asked else self._grace_seconds * (1 - STEP_SHARE)

    def ask(self, signal_name: str) -> None:
        """This node shall leave; asked again, it has no more time than before."""
        if self.asked_by is None:
            self._asked_at = self._clock()
            self.asked_by = signal_name

    def may_go(self, *, has_ranks: bool, has_finished: bool, lead: Mapping[str, Any] | None, attempt: int) -> bool:
        """Whether the ranks have ended, or have done nothing new, or had their time; asks them on the first call.

        Args:
            has_ranks: whether some of this node's are alive.
            has_finished: whether all of them have done all that there was to do: the run may end well while this node waits.
            lead: what its first rank said last.
            attempt: of the living ranks.
        """
        phase = lead.get("phase") if lead is not None and lead.get("attempt") == attempt else None
        if has_finished or (has_ranks and phase == "finished"):  # which are ending
            return not self.left_seconds
        if not has_ranks:
            return True
        if not self._has_told:
            if phase not in PRODUCTIVE_PHASES:
                return True  # nothing new has been done since the state that they started from
            self._has_told = True
            _log.warning("asked to stop: all ranks keep their state and leave after this step")
            self._custody.memory.ask_to_leave(attempt)
        return self._clock() >= self._asked_at + self._grace_seconds * STEP_SHARE
