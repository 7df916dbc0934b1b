"""Everything that a step touches, in one place."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddp_trainer.config import RunConfig
from ddp_trainer.distributed import Group
from ddp_trainer.engine.average import in_place_of
from ddp_trainer.engine.divergence import probes_of
from ddp_trainer.exchange.piggyback import Piggyback
from ddp_trainer.tasks.protocol import Dataset, Task


@dataclass
class Training:
    """Everything that a step touches. Built by `build`, advanced by `train`."""

    config: RunConfig
    task: Task
    group: Group
    model: nn.Module
    """The bare model; `ranks_model` is the same, wrapped for the exchange of gradients."""
    ranks_model: nn.Module
    optimizer: Optimizer
    ema: dict[str, Tensor]
    train_set: Dataset
    test_set: Dataset
    dtype: torch.dtype
    micro_batches: int
    total_steps: int
    step: int = 0
    predictions: list[Tensor] = field(default_factory=list)
    """float32 [n, 3] per batch of the last evaluation: target, predicted class, confidence. Empty if the task has no classes."""
    sums: Tensor = field(init=False)
    """float64 [4] on the device, since the last report: loss and accuracy (NaN where the task has none) summed over this rank's samples,
    steps that were not finite, and the number of samples."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation, which was after `evaluated_step`."""
    evaluated_step: int = 0
    skipped: Sequence[tuple[int, int]] = ()
    """Windows of 0-based steps that are passed over, because the loss was not finite there: (first, one after the last)."""
    gradient_order: Sequence[int] = ()
    """In which order gradients arrive, as places among the trained parameters: rank 0's in its first backward pass. Empty until known."""
    words: Piggyback | None = None
    """What ranks tell each other; None where there is one rank. Set by `begin`."""
    own_seconds: float = 0.0
    """This rank's own part of the last step (on a GPU, of the newest that is done): data and forward passes, without waiting for others."""
    data_seconds: float = 0.0
    """Summed up by each step: for how long this rank's host was busy with samples; where a GPU makes the batches, it only asks for them."""
    probes: list[Tensor] = field(init=False)
    """Parameters whose gradients are looked at in every step."""

    def __post_init__(self) -> None:
        """Sums start at zero."""
        self.sums = torch.zeros(4, dtype=torch.float64, device=self.group.device)
        self.probes = probes_of(self.model)

    @property
    def steps_per_epoch(self) -> float:
        """Not whole in general: a global batch may straddle two epochs, so that every sample is used exactly once in each."""
        return len(self.train_set) / self.config.data.global_batch

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The mixed precision of forward passes."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.group.device.type, dtype=self.dtype)

    @property
    def evaluated_parameters(self) -> contextlib.AbstractContextManager[object]:
        """Swaps the average in for evaluation, where one is kept."""
        return in_place_of(dict(self.model.named_parameters()), self.ema) if self.ema else contextlib.nullcontext()
