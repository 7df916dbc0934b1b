"""The exponential moving average of a model's parameters: kept beside them, and put in their place for an evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def begin_average(model: nn.Module) -> dict[str, Tensor]:
    """The average at the start, by parameter name: a copy of the parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def follow(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Move the average towards the parameters, by the part of the way that `decay` leaves."""
    live = dict(model.named_parameters())
    with torch.no_grad():
        torch._foreach_lerp_(list(average.values()), [live[n].detach() for n in average], 1 - decay)  # public in spirit: torch.optim's


@contextlib.contextmanager
def in_place_of(live: dict[str, nn.Parameter], average: dict[str, Tensor]) -> Iterator[None]:
    """The live parameters hold the average inside the block."""
    kept = {name: p.detach().clone() for name, p in live.items()}
    with torch.no_grad():
        for name, p in live.items():
            p.copy_(average[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, p in live.items():
                p.copy_(kept[name])
