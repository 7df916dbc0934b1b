"""How a bucket of gradients becomes the sum over all ranks: DDP's communication hook, which a rehearsal can do without.

DDP by itself divides by the number of ranks. Here nothing is divided: each micro-batch's loss is already weighed by its share of the global
batch, whatever the world size, so the sum is the gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from ddp_trainer.exchange.shared_sum import SharedSum


class GradientSum:
    """The exchange of one wrapped model."""

    def __init__(self) -> None:
        self._is_muted = False
        self._shared: SharedSum | None = None

    def serve(self, model: DistributedDataParallel, shared: SharedSum | None = None) -> None:
        """Be that model's exchange, for good, through `shared` where all ranks have it. Before its first backward pass."""
        self._shared = shared
        # a lambda: DDP compares annotations with classes, and this file's are text
        model.register_comm_hook(self, lambda exchange, bucket: exchange.start_sum(bucket.buffer()))

    @contextlib.contextmanager
    def muted(self) -> Iterator[None]:
        """While open, backward passes send nothing: every rank keeps its own gradients. On all ranks alike, or they wait for each other."""
        self._is_muted = True
        try:
            yield
        finally:
            self._is_muted = False

    def start_sum(self, bucket: Tensor) -> Future[Tensor]:
        """Start to sum a bucket in place; the future has it."""
        if self._is_muted:
            return _done(bucket)
        if self._shared and not bucket.is_sparse:
            self._shared.add_up(bucket)
            return _done(bucket)
        work = dist.all_reduce(bucket, async_op=True)
        assert work is not None  # the group is this rank's
        return cast("Future[Tensor]", work.get_future().then(lambda summed: summed.value()[0]))


def _done(bucket: Tensor) -> Future[Tensor]:
    done: Future[Tensor] = Future()  # of no device: nothing is enqueued that anybody would have to wait for
    done.set_result(bucket)
    return done
