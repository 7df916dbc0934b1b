"""The sum of gradients over the ranks of one machine, through memory that they share, not over the loopback interface.

Every rank owns a row of the memory, with a block for each rank. A piece is cut into as many slices as there are ranks; each rank puts the
slices of the others into its row, all meet, each adds up its own slice of all rows in the order of the ranks, all meet again, and each
takes the sums of the others. To meet is an all-reduce of one number: so a peer that dies or hangs is noticed as in any other collective.

What is written is read before it is overwritten. A rank's sum lies in a block that only it writes, after the next meeting; and the blocks
into which it puts the slices of the next piece were read before the last one. Blocks keep their place whatever the piece's size.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

PIECE_BYTES = 16 << 20
"""Of a bucket that is summed at once: little beside the gradients, and long enough for the meetings not to count."""
HEAD_BYTES = mmap.PAGESIZE
"""Of the memory, for the secret by which it is known."""
ALIGNED_BYTES = 64


@dataclass(frozen=True)
class Offer:
    """Where the processes of a machine find one rank's memory, and how they know that it is that."""

    path: str
    secret: str
    block_bytes: int


class SharedSum:
    """One rank's part. The memory goes with the last process that has it mapped."""

    def __init__(self, memory: mmap.mmap, rank: int, world_size: int, block_bytes: int) -> None:
        self._rank = rank
        self._world_size = world_size
        self._block_bytes = block_bytes
        self._rows = torch.frombuffer(memory, dtype=torch.uint8, offset=HEAD_BYTES).view(world_size, world_size, block_bytes)
        self._here = torch.zeros(1)

    @staticmethod
    @contextlib.contextmanager
    def offered(world_size: int, piece_bytes: int = PIECE_BYTES) -> Iterator[Offer | None]:
        """Memory for so many ranks, which can open it while this is open; None where there is none."""
        block_bytes = (piece_bytes // world_size // ALIGNED_BYTES + 1) * ALIGNED_BYTES
        with contextlib.ExitStack() as stack:
            try:
                descriptor = os.memfd_create("ddp-gradients")
                stack.callback(os.close, descriptor)
                os.posix_fallocate(descriptor, 0, HEAD_BYTES + world_size**2 * block_bytes)  # now, not in the middle of a step
            except OSError:
                offer = None
            else:
                offer = Offer(f"/proc/{os.getpid()}/fd/{descriptor}", secrets.token_hex(16), block_bytes)
                os.pwrite(descriptor, offer.secret.encode(), 0)
            yield offer

    @classmethod
    def open(cls, offer: Offer, rank: int, world_size: int) -> Self | None:
        """This rank's part; None where the memory is not to be had: in another container, say, whose processes have the same numbers."""
        try:
            descriptor = os.open(offer.path, os.O_RDWR)
        except OSError:
            return None
        try:
            if os.pread(descriptor, len(offer.secret), 0).decode(errors="replace") != offer.secret:
                return None
            return cls(mmap.mmap(descriptor, 0), rank, world_size, offer.block_bytes)
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def add_up(self, bucket: Tensor) -> None:
        """Sum a bucket, of one dimension, in place; every rank its own, of the same length. On CPUs there is nothing else to do meanwhile.

        Raises:
            RuntimeError: a peer is gone: what gloo says then.
        """
        blocks = self._rows.view(bucket.dtype)
        for piece in bucket.split(self._block_bytes // bucket.element_size() * self._world_size):
            self._add_up(piece, blocks)

    def _add_up(self, piece: Tensor, blocks: Tensor) -> None:
        length, count, mine = len(piece), self._world_size, self._rank
        slices = [piece[length * i // count : length * (i + 1) // count] for i in range(count)]
        for i, part in enumerate(slices):
            if i != mine:
                blocks[mine, i, : len(part)].copy_(part)
        self._meet()
        own = slices[mine]
        parts = [own if i == mine else blocks[i, mine, : len(own)] for i in range(count)]
        total = torch.add(parts[0], parts[1], out=blocks[mine, mine, : len(own)])
        for part in parts[2:]:
            total.add_(part)
        self._meet()
        for i, part in enumerate(slices):
            part.copy_(blocks[i, i, : len(part)])

    def _meet(self) -> None:
        dist.all_reduce(self._here)
