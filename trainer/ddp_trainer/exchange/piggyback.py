"""What ranks tell each other in every step, without a collective of its own: it rides on the gradients.

The wrapped module has one parameter more than the model, a short row of words. Its gradient is not computed but said: each rank puts its
own words there, and the all-reduce of that step's gradients carries the sum to every rank. So all ranks learn of a wish (keep the
state, leave) at the same step boundary, whoever had it, and a signal that reached one rank only is heard by all.

The gradient is the first to be ready in the backward pass, so it waits for nobody and nobody waits for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

_FLAGS = 2
_SET = 0.5
"""A sum of flags is a whole number, so anything above this means that at least one rank has set it."""


@dataclass(frozen=True)
class Words:
    """What one rank says in a step, or what all have said."""

    keep: bool = False
    """The state after this step shall be kept: rank 0's decision."""
    leave: bool = False
    """All ranks shall keep the state and end: somebody's node is being stopped."""
    own_seconds: tuple[float, ...] = ()
    """Per rank: its own part of the last step, without waiting for others. A single number when said, one per rank when heard."""


class Piggyback(nn.Module):
    """The model with its row of words. `group_size` ranks; on one device with the model."""

    def __init__(self, model: nn.Module, rank: int, group_size: int, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self._rank = rank
        self._group_size = group_size
        self.words = nn.Parameter(torch.zeros(_FLAGS + group_size, device=device))
        self._pending: tuple[Tensor, Any] | None = None
        self._stand_in: Callable[[], Any] | None = None

    def forward(self, *inputs: Any) -> Any:
        """The model's."""
        return self._stand_in() if self._stand_in else self.model(*inputs)

    @contextlib.contextmanager
    def with_stand_in(self, stand_in: Callable[[], Any]) -> Iterator[None]:
        """While open, a forward pass calls this instead of the model."""
        self._stand_in = stand_in
        try:
            yield
        finally:
            self._stand_in = None

    def say(self, loss: Tensor, words: Words) -> Tensor:
        """The same loss; its backward pass also says `words`. Call it for the backward pass that sums over ranks, in every step."""
        row = torch.zeros(_FLAGS + self._group_size)
        row[0], row[1] = float(words.keep), float(words.leave)
        if words.own_seconds:
            row[_FLAGS + self._rank] = words.own_seconds[0]
        return cast("Tensor", _Say.apply(loss, self.words, row.to(loss.device, non_blocking=True)))

    def heard(self) -> Words:
        """What all ranks said: in this step on a CPU, in the step before on a GPU, where asking earlier would stop the pipeline."""
        grad = self.words.grad
        self.words.grad = None
        if grad is None:
            return Words()
        if grad.device.type != "cuda":
            return self._read(grad)
        # the copy of the last step is there by now, as it is for every other rank: all of them hear the same in the same step
        before = self._pending
        copy = grad.to("cpu", non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self._pending = (copy, done)
        if before is None:
            return Words()
        before[1].synchronize()
        return self._read(before[0])

    def _read(self, total: Tensor) -> Words:
        row = total.detach().float().tolist()
        return Words(row[0] > _SET, row[1] > _SET, tuple(row[_FLAGS:]))


class _Say(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, words: Tensor, row: Tensor) -> Tensor:  # noqa: ARG004
        ctx.row = row
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, ctx.row, None
