"""What the training loop calls after every step: it decides by itself whether to save, and saves.

First form: rank 0 copies the state and commits it between two steps, so training stalls for the whole commit. The calls are shaped so
that a background writer can take over behind them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ddp_trainer.checkpoint.manifest import FileEntry, Manifest
from ddp_trainer.checkpoint.schedule import Due
from ddp_trainer.checkpoint.state import RunState
from ddp_trainer.checkpoint.store import CheckpointStore
from ddp_trainer.errors import DataError, DivergedError

_log = logging.getLogger(__name__)

Describe = Callable[[int, dict[str, FileEntry]], Manifest]
Report = Callable[[Manifest, float], None]


@dataclass
class Saver:
    """Rank 0's; other ranks have a `store` of None and every offer is free.

    `describe(step, files)` completes a manifest; `saved(manifest, seconds)` is told of each durable checkpoint; `saving()` before it.
    """

    store: CheckpointStore | None
    state: RunState
    due: Due
    describe: Describe
    saving: Callable[[], None]
    saved: Report
    last_step: int
    clock: Callable[[], float] = time.monotonic
    _last_time: float = field(init=False)

    def __post_init__(self) -> None:
        """The interval begins now."""
        self._last_time = self.clock()

    def offer(self, step: int) -> None:
        """The state after `step` is complete and may be saved now.

        Raises:
            DivergedError: a tensor of the state is not finite; nothing is written.
            DataError: the final state cannot be written. Earlier failures are logged and tried again at the next interval: a full disk
                must not stop a run that can still train.
        """
        started = self.clock()
        if self.store is None or not self.due(step, self.last_step, started - self._last_time):
            return
        self.saving()
        try:
            tensors = self.state.tensors()
            _assert_finite(step, tensors)
            manifest = self.store.commit(tensors, lambda files: self.describe(step, files))
        except DataError as error:
            if step >= self.due.total_steps:
                raise
            _log.warning("%s; training goes on", error)
        else:
            self.last_step = step
            self.saved(manifest, self.clock() - started)
        self._last_time = self.clock()


def _assert_finite(step: int, tensors: Mapping[str, Tensor]) -> None:
    """A state that is not finite would be the newest checkpoint, and every start from it would fail the same way."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.sum(dtype=tensor.dtype).isfinite()) and not bool(tensor.isfinite().all()):
            raise DivergedError(f"{name} is not finite after step {step}: not saved, and the last checkpoint is good; lower optim.lr")
