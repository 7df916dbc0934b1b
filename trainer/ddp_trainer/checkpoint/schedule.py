"""When to keep the state: in memory every few steps, on disk every few seconds. Pure decisions that rank 0 makes after every step."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

from ddp_trainer.config import CheckpointSection

MEMORY_COST_RATIO = 0.008
"""Part of the training time that snapshots in memory may take: below 1 %, which also holds while stalls vary by a quarter."""
MEASURED = 5
"""So many of the newest stalls give the median: one that met a busy moment changes nothing."""

FEWEST = 3
"""... and so many there must be: the first touches memory that nobody has touched before, and takes several times as long."""


@dataclass
class Schedule:
    """The policy of the `checkpoint` section, fed with what snapshots and steps cost."""

    policy: CheckpointSection
    total_steps: int
    step_seconds: float = 0.0
    """Usual duration of a step; 0 while it is not known."""
    persist_seconds: float = 0.0
    """What the newest durable checkpoint took to write; 0 while none was written."""
    steps_to_keep: int = 2
    """Steps that may end between the moment at which the state is due and its copy: it is said before one, and done after the next."""
    _stalls: deque[float] = field(default_factory=lambda: deque(maxlen=MEASURED))

    def stalled(self, seconds: float) -> None:
        """A snapshot held training up for this long."""
        self._stalls.append(seconds)

    @property
    def stall_seconds(self) -> float:
        """Usual time that training stands still for a snapshot; 0 until one was taken."""
        return median(self._stalls) if self._stalls else 0.0

    @property
    def memory_every_steps(self) -> int:
        """Steps between two snapshots in memory; 0: none but those that go to disk."""
        every = self.policy.memory_every_steps
        if every != "auto":
            return every
        if not self.step_seconds or len(self._stalls) < FEWEST:
            return 1  # these are what is measured
        return max(1, math.ceil(self.stall_seconds / (MEMORY_COST_RATIO * self.step_seconds)))

    @property
    def durable_every_seconds(self) -> float | None:
        """Seconds from one state that is made durable to the next, for no more work at risk than is allowed; None: by steps only."""
        every, policy = self.policy.every_seconds, self.policy
        if every is None:
            return None
        most = policy.max_lost_seconds if every == "auto" else every
        # a fault right before the next one is durable costs the interval, the steps until it is copied, and the write
        ahead = self.steps_to_keep * self.step_seconds + self.persist_seconds
        longest = max(most - ahead, most / 2)  # half, where that takes most of the time: no storm of checkpoints
        best = math.sqrt(2 * self.stall_seconds * policy.mtbf_seconds)  # Young (1974), Daly (2006), for a stall far below the MTBF
        return min(longest, best) if every == "auto" and best else longest

    def durable_is_due(self, step: int, last_step: int, seconds_since_last: float) -> bool:
        """Whether the state after `step` must be made durable, the last one that was asked for being of `last_step`. The end always is."""
        if step <= last_step:
            return False
        if step >= self.total_steps:
            return True
        if self.policy.every_steps and step // self.policy.every_steps > last_step // self.policy.every_steps:
            return True
        every = self.durable_every_seconds
        return every is not None and seconds_since_last >= every

    def memory_is_due(self, step: int, last_step: int) -> bool:
        """Whether the state after `step` must be kept in memory, the last one kept being of `last_step`."""
        every = self.memory_every_steps
        return every > 0 and step - last_step >= every
