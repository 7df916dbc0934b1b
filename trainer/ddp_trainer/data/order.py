"""Which samples belong to which step, and to which rank.

Each epoch visits the samples in a pseudo-random order that is a pure function of (seed, epoch). The orders of epoch 0, 1, 2, ... one
after another are the sample stream; step s trains on positions [s * G, (s + 1) * G) of it, where G is the global batch. So every batch
has exactly G samples (one may straddle two epochs), every sample occurs exactly once an epoch, and the step number is the whole data
state of a run. The global batch is cut into a fixed number of micro-batches that are dealt to the ranks in order, so the world size
decides who computes, never what. No files, no devices, no process group here.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddp_trainer.data.hashing import ORDER, random_bits
from ddp_trainer.errors import ConfigError

ORDERS_KEPT = 4
"""A batch needs the orders of the epochs it touches: one or two, unless it is larger than the data set. 8 bytes a sample each."""


@lru_cache(maxsize=ORDERS_KEPT)
def order(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """The permutation of range(size) in which epoch `epoch` visits the samples: int64 [size], read-only."""
    bits = random_bits(seed, ORDER, np.array([epoch], np.int64), np.arange(size, dtype=np.int64))
    permutation = np.argsort(bits, kind="stable").astype(np.int64, copy=False)  # stable: ties, if ever, fall the same way everywhere
    permutation.flags.writeable = False
    return permutation


def global_batch(seed: int, size: int, batch: int, step: int) -> tuple[Tensor, Tensor]:
    """The samples of 0-based step `step`.

    Args:
        seed: of the run.
        size: samples in the training set; may be smaller than the batch.
        batch: the global batch G.
        step: 0-based number of the optimizer step.

    Returns:
        Sample numbers, int64 [G], and the epoch of each, int64 [G], both on the CPU.
    """
    indices, epochs = np.empty(batch, np.int64), np.empty(batch, np.int64)
    filled = 0
    while filled < batch:
        epoch, offset = divmod(step * batch + filled, size)
        count = min(batch - filled, size - offset)
        indices[filled : filled + count] = order(seed, epoch, size)[offset : offset + count]
        epochs[filled : filled + count] = epoch
        filled += count
    return torch.from_numpy(indices), torch.from_numpy(epochs)


def micro_batches_of(rank: int, world_size: int, micro_batches: int) -> range:
    """Which micro-batches rank `rank` computes: consecutive ones, shares differing by at most one.

    Raises:
        ConfigError: there are more ranks than micro-batches, so that some would have nothing to do.
    """
    if micro_batches < world_size:
        raise ConfigError(
            f"data.micro_batches is {micro_batches}, too few for {world_size} ranks; start no more than {micro_batches} of them, "
            f"or begin anew with a larger data.micro_batches"
        )
    return range(rank * micro_batches // world_size, (rank + 1) * micro_batches // world_size)


def micro_batch(number: int, micro_batches: int, batch: int) -> slice:
    """Where micro-batch `number` of `micro_batches` lies in the global batch of `batch` samples; RunConfig checks that it divides."""
    each = batch // micro_batches
    return slice(number * each, (number + 1) * each)


def evaluation_slice(rank: int, world_size: int, size: int) -> range:
    """The test samples that rank `rank` evaluates: over all ranks each of range(size) once, shares differing by at most one."""
    return range(rank * size // world_size, (rank + 1) * size // world_size)
