"""What an agent sees in its ranks while they live: that they stand still, and which of them is slow.

The watchdog says that something stands still, the stacks say who is to blame; a node whose ranks only wait for others leaves the word to
the node that has the culprit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddp_trainer.config import FaultToleranceSection
from ddp_trainer.errors import HANG
from ddp_trainer.resilience import stacks
from ddp_trainer.resilience.fault import Fault
from ddp_trainer.resilience.stragglers import Stragglers
from ddp_trainer.resilience.watchdog import Stall, Watchdog

_log = logging.getLogger(__name__)

Facts = Mapping[int, Mapping[str, Any] | None]
"""What each living rank of this node said last, by local rank; None before its first word in this attempt."""


@dataclass(frozen=True)
class Hang:
    """Ranks of this node stand still. `is_root`: one of them is to blame; else the culprit is on another node."""

    fault: Fault
    is_root: bool
    stacks: Mapping[str, str]
    """By local rank, short enough for an event."""


class Diagnosis:
    """One per agent; `reset` it for every attempt."""

    def __init__(self, policy: FaultToleranceSection, node: int, signal_rank: Callable[[int, int], None]) -> None:
        self._node = node
        self._signal_rank = signal_rank
        self._watchdog = Watchdog(policy)
        self._stragglers = Stragglers(policy.straggler_ratio)
        self._is_told = False

    @property
    def has_looked(self) -> bool:
        """Whether ranks of this attempt were made to print their stacks: one that dies of it (rarely, by SIGSEGV) is not the cause."""
        return self._is_told

    def reset(self) -> None:
        """New ranks are about to start."""
        self._watchdog.reset()
        self._is_told = False

    def hang(self, facts: Facts, traces: Mapping[int, tuple[int, Path]], global_ranks: Mapping[int, int]) -> Hang | None:
        """The hang that has come to light, once per attempt. Stacks of all ranks go to the log.

        Args:
            facts: of all living ranks.
            traces: by local rank, its pid and the file that it prints its stacks to.
            global_ranks: by local rank.
        """
        stall = None if self._is_told else self._watchdog.look(facts, time.monotonic())
        if stall is None:
            return None
        self._is_told = True
        texts = stacks.collect(traces, self._signal_rank)
        for local, text in texts.items():
            _log.warning("stacks of rank %d:\n%s", global_ranks[local], text)
        steps = {local: int((said or {}).get("step") or 0) for local, said in facts.items()}
        return self._hang(stall, stacks.suspect(texts, steps), texts, global_ranks)

    def _hang(self, stall: Stall, found: stacks.Suspect, texts: Mapping[int, str], global_ranks: Mapping[int, int]) -> Hang:
        local = stall.local_rank if found.local_rank is None else found.local_rank
        message = f"no sign of life for {stall.still_seconds:.0f} s while {stall.phase} (limit {stall.limit_seconds:.0f} s); {found.reason}"
        still = round(stall.still_seconds, 1)
        fault = Fault(HANG.cause, self._node, global_ranks[local], HANG.code, stall.step, message, still_seconds=still)
        trimmed = {str(global_ranks[rank]): stacks.trimmed(text, len(texts)) for rank, text in texts.items()}
        return Hang(fault, found.local_rank is not None, trimmed)

    def slow_ranks(self, lead: Mapping[str, Any]) -> list[str]:
        """A sentence for each rank that has become slow, from what rank 0 heard of all of them."""
        return [
            f"rank {rank} is slow: its own part of a step takes {ratio:.1f} times the median of all ranks"
            for rank, ratio in self._stragglers.look(lead.get("own_seconds") or [], time.monotonic())
        ]
