"""What each rank of a gang does in the tests of the sum through shared memory."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ddp_trainer.distributed import Group, is_echo, words_of_echo
from ddp_trainer.exchange.gradient_sum import GradientSum
from ddp_trainer.exchange.shared_sum import Offer, SharedSum

PIECE_BYTES = 8 * 500
"""So that the longest bucket takes several."""


def _memory(group: Group) -> SharedSum:
    with SharedSum.offered(group.world_size, PIECE_BYTES) if group.rank == 0 else contextlib.nullcontext() as offer:
        told = group.share_json(offer and vars(offer))
        opened = told and SharedSum.open(Offer(**told), group.rank, group.world_size)
        dist.barrier()
    assert opened
    return opened


def _bucket(rank: int, number: int, length: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(1000 * rank + number), dtype=torch.float64).to(dtype)


def sums(group: Group, lengths: list[int], dtypes: list[str], times: int) -> list[bool]:
    """Whether each bucket became the ranks' sum in their order, bit for bit."""
    memory, right = _memory(group), []
    for round_ in range(times):
        asked = [(length, getattr(torch, dtype)) for length in lengths for dtype in dtypes]
        all_of = [[_bucket(rank, 100 * round_ + i, *what) for i, what in enumerate(asked)] for rank in range(group.world_size)]
        for parts in zip(*all_of, strict=True):
            bucket = parts[group.rank].clone()
            memory.add_up(bucket)
            expected = parts[0].clone()
            for part in parts[1:]:
                expected += part
            right.append(torch.equal(bucket, expected))
    return right


def strangers(group: Group) -> list[bool]:
    """Whether offers were taken that are not this memory's: a process that is gone, and a file that holds other words."""
    with SharedSum.offered(2, PIECE_BYTES) as own:
        assert own
        gone, other = Offer(f"/proc/{2**22 + 1}/fd/3", own.secret, own.block_bytes), Offer(own.path, "0" * 32, own.block_bytes)
        return [SharedSum.open(offer, 0, 2) is not None for offer in (gone, other, own)]


def left_alone(group: Group) -> dict[str, Any]:
    """The last rank leaves without a word; what a backward pass of the others says."""
    model = torch.nn.Linear(3, 3)
    ranks_model = group.wrap(model, GradientSum())
    if group.rank == group.world_size - 1:
        return {}
    try:
        ranks_model(torch.ones(2, 3)).sum().backward()
    except RuntimeError as error:
        return {"is_echo": is_echo(error), "words": words_of_echo(error)}
    return {"is_echo": False, "words": "a sum"}


def wrapped(group: Group) -> bool:
    """Whether a model wrapped here adds up in memory."""
    return group._shared_sum(4 * 12) is not None


def apart(group: Group) -> bool:
    """The same where the last rank cannot open the memory, as in another container."""
    if group.rank == group.world_size - 1:
        SharedSum.open = classmethod(lambda *_: None)  # type: ignore[assignment, method-assign]
    return wrapped(group)


def without_memory(group: Group) -> bool:
    """The same where the first rank is refused the memory."""

    def refused(*_: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    os.posix_fallocate = refused
    return wrapped(group)
