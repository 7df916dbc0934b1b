"""What the training loop calls to keep its state: a copy into the node's memory, which the background writer makes durable.

Training stands still for the copy only. The first rank of each node copies; rank 0 also decides when, and all ranks learn of it with
the gradients of the step, so that norm statistics can be made equal before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ddp_trainer.checkpoint.image import Image
from ddp_trainer.checkpoint.pinning import pin
from ddp_trainer.checkpoint.schedule import Schedule
from ddp_trainer.checkpoint.snapshot import SnapshotMemory
from ddp_trainer.checkpoint.state import RunState


@dataclass
class Keeper:
    """One rank's. `memory` is None for all but the first rank of a node; `leads` is true for rank 0, whose snapshots become durable.

    `describe(step, stall_seconds)` gives what the manifest says; `kept(step, seconds, every_steps)` is told of each snapshot, and of the
    interval in which they follow from there on.
    """

    memory: SnapshotMemory | None
    state: RunState
    schedule: Schedule
    describe: Callable[[int, float], Mapping[str, Any]]
    kept: Callable[[int, float, int], None]
    leads: bool
    last_step: int
    """The newest step kept; as it is resumed, at first."""
    last_durable_step: int
    """The newest step for which durability was asked, or which lies on disk."""
    last_asked: int | None = None
    """The newest step for which durability was asked here."""
    clock: Callable[[], float] = time.monotonic
    _last_time: float = field(init=False)
    _views: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    _image: Image | None = None
    _names: tuple[str, ...] = ()
    _stall_seconds: float = 0.0

    def __post_init__(self) -> None:
        """The interval begins now."""
        self._last_time = self.clock()

    def hurry(self) -> None:
        """The next state shall be made durable, whenever the last one was."""
        self._last_time = -math.inf

    def is_due(self, step: int) -> bool:
        """Rank 0: whether the state after `step` shall be kept."""
        return self.schedule.memory_is_due(step, self.last_step) or self._durable_is_due(step)

    def keep(self, step: int, shared_seconds: float = 0.0, *, durable: bool = False) -> None:
        """Take a snapshot of the state after `step`; on rank 0 it becomes durable if that is due, or asked for here.

        `shared_seconds`: what training has stood still for it already, while the ranks' states were made equal.
        """
        self._keep(step, shared_seconds, durable=self.leads and (durable or self._durable_is_due(step)))

    def secure(self, step: int) -> None:
        """Take a snapshot of the state after `step`, where there is none, that does not become durable: an evaluation is still to come.

        The checkpoint of this step, if one is due, is made from the snapshot after it, which has the metrics by which the best is known.
        """
        if step > self.last_step:
            self._keep(step, durable=False)

    def _keep(self, step: int, shared_seconds: float = 0.0, *, durable: bool) -> None:
        self.last_step = step
        if self.memory is not None:
            self._reserve(self.memory)  # once; not part of what a snapshot costs
            started = self.clock() - shared_seconds
            self.memory.write(self._fill, lambda: self.describe(step, self._stalled(started)), durable=durable)
            self.schedule.stalled(self._stall_seconds)
            self.kept(step, self._stall_seconds, self.schedule.memory_every_steps)
        if durable:
            self.last_durable_step = self.last_asked = step
            self._last_time = self.clock()

    def _durable_is_due(self, step: int) -> bool:
        return self.schedule.durable_is_due(step, self.last_durable_step, self.clock() - self._last_time)

    def _stalled(self, started: float) -> float:
        self._stall_seconds = self.clock() - started
        return self._stall_seconds

    def _reserve(self, memory: SnapshotMemory) -> None:
        """At the first snapshot, and when the optimizer has made its tensors later, after a beginning that was passed over."""
        names = tuple(tensors := self.state.tensors())
        if names != self._names:
            self._names, self._image = names, Image.of(tensors)
            self._views.clear()
            memory.reserve(self._image, slots=3 if self.leads else 2)

    def _fill(self, slot: int) -> None:
        assert self._image is not None
        assert self.memory is not None
        block = self.memory.block(slot)
        self._image.write_headers(block)  # tens of KB: a slot that somebody died in is whole again, whatever was in it
        if slot not in self._views:
            self._views[slot] = self._image.views(block)
            pin(block, self.state.device)
        self.state.copy_to(self._views[slot])
