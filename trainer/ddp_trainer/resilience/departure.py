"""How a node leaves when it is asked to: all ranks of the run keep their state after the step they are in, then end together.

The wish reaches the node's own ranks through its memory, and all others with the gradients of the next step, so it is agreed at one
step boundary without a collective of its own. A node whose ranks have nothing new goes at once; one whose ranks do not get to the end
of their step goes when its time is up, and what they kept last is written.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from ddp_trainer.resilience.chronicle import PRODUCTIVE_PHASES
from ddp_trainer.resilience.custody import Custody

_log = logging.getLogger(__name__)

STEP_SHARE = 0.5
"""Part of the preemption grace in which ranks may reach their next step; the rest is for the disk."""


class Departure:
    """One per agent. `ask` may be called from a signal handler."""

    def __init__(self, custody: Custody, grace_seconds: float) -> None:
        self.asked_by: str | None = None
        """The name of the signal that asked this node to leave; None: nobody did."""
        self._custody = custody
        self._grace_seconds = grace_seconds
        self._leave_by: float | None = None

    @property
    def write_seconds(self) -> float:
        """The part of the grace that is left for the disk."""
        return self._grace_seconds * (1 - STEP_SHARE)

    @property
    def is_asked(self) -> bool:
        """Whether this node shall leave."""
        return self.asked_by is not None

    def ask(self, signal_name: str) -> None:
        """This node shall leave."""
        self.asked_by = signal_name

    def may_go(self, *, has_ranks: bool, lead: Mapping[str, Any] | None, attempt: int) -> bool:
        """Whether the ranks have ended, or have done nothing new, or had their time; asks them on the first call.

        Args:
            has_ranks: whether some of this node's are alive.
            lead: what its first rank said last.
            attempt: of the living ranks.
        """
        if not has_ranks:
            return True
        if self._leave_by is None:
            if lead is None or lead.get("attempt") != attempt or lead.get("phase") not in PRODUCTIVE_PHASES:
                return True  # nothing new has been done since the state that they started from
            self._leave_by = time.monotonic() + self._grace_seconds * STEP_SHARE
            _log.warning("asked to stop: all ranks keep their state and leave after this step")
            self._custody.memory.ask_to_leave(attempt)
        return time.monotonic() >= self._leave_by
