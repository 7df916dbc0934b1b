"""A process that takes snapshots until it is killed: python snapshot_taker.py DESCRIPTOR [STOP_IN_FILL_OF]"""

from __future__ import annotations

import os
import signal
import sys

import torch

from ddp_trainer.checkpoint.image import Image
from ddp_trainer.checkpoint.snapshot import SnapshotMemory

SIZE = 200_000


def take(memory: SnapshotMemory, image: Image, step: int, torn_step: int) -> None:
    def fill(slot: int) -> None:
        views = image.views(memory.block(slot))
        views["model.w"].fill_(step)
        if step == torn_step:
            os.kill(os.getpid(), signal.SIGKILL)
        views["optimizer.w.momentum_buffer"].fill_(-step)

    memory.write(fill, lambda: {"step": step}, durable=False)
    print(step, flush=True)


def main() -> None:
    memory, torn_step = SnapshotMemory(int(sys.argv[1])), int(sys.argv[2]) if len(sys.argv) > 2 else -1
    image = Image.of({"model.w": torch.zeros(SIZE), "optimizer.w.momentum_buffer": torch.zeros(SIZE)})
    memory.reserve(image, slots=2)
    newest = memory.newest()
    step = newest.step if newest else 0
    while True:
        step += 1
        take(memory, image, step, torn_step)


main()
