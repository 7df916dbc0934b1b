"""A backward pass without a model: gradients of zero, which arrive in the order in which a real pass was seen to bring them.

DDP takes nothing from its first backward pass but that order. The real one needs a forward pass first, which at four ranks on two cores
is a sixth of a restart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def arrivals(model: nn.Module) -> Iterator[list[int]]:
    """A list that fills with the order in which gradients arrive in the next backward pass, as places among the trained parameters.

    It stays short of a parameter whose gradient is sparse: zeros in its place would not be taken for one.
    """
    order: list[int] = []

    def noting(place: int) -> Callable[[Tensor | None], None]:
        def hook(gradient: Tensor | None) -> None:  # None: a user's own function has none for it, which DDP takes for zeros
            if gradient is None or not gradient.is_sparse:
                order.append(place)

        return hook

    handles = [parameter.register_hook(noting(place)) for place, parameter in enumerate(_trained(model))]
    try:
        yield order
    finally:
        for handle in handles:
            handle.remove()


def is_whole(order: Sequence[int], model: nn.Module) -> bool:
    """Whether the order names each trained parameter of the model once."""
    return sorted(order) == list(range(len(_trained(model))))


def rehearse(order: Sequence[int], model: nn.Module) -> Tensor:
    """A scalar 0 whose backward pass brings each parameter a gradient of zeros, in this order."""
    parameters = _trained(model)
    end = torch.zeros((), device=parameters[0].device)
    lengths: dict[torch.dtype, int] = {}
    for parameter in parameters:
        lengths[parameter.dtype] = max(lengths.get(parameter.dtype, 0), parameter.numel())
    # one for all, as long as the longest of them: these gradients share memory, and DDP copies them away before they are thrown away
    zeros = {dtype: end.new_zeros(length, dtype=dtype) for dtype, length in lengths.items()}
    for place in reversed(order):  # what is linked last is the first to be reached from the end
        end = cast("Tensor", _Link.apply(end, parameters[place], zeros[parameters[place].dtype]))
    return end


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class _Link(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, end: Tensor, parameter: Tensor, zeros: Tensor) -> Tensor:
        ctx.zeros, ctx.form = zeros, torch.empty_like(parameter, device="meta")  # of the parameter's layout, which the buckets have
        return end.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        # made here: autograd takes a gradient over as it is only if nothing else refers to it
        return gradient, ctx.zeros.as_strided(ctx.form.shape, ctx.form.stride()), None
