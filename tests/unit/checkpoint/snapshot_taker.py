"""A program, not a test: it imports torch once, and forks processes that take snapshots until they are killed.

Usage: snapshot_taker.py DESCRIPTOR. Each line of its input, STOP_IN_FILL_OF (-1: never), starts one; it prints the process's number, each
step that has been taken, and, when the process has ended, "ended" with the signal's number.
"""

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


def take_all(descriptor: int, torn_step: int) -> None:
    memory = SnapshotMemory(descriptor)
    image = Image.of({"model.w": torch.zeros(SIZE), "optimizer.w.momentum_buffer": torch.zeros(SIZE)})
    memory.reserve(image, slots=2)
    newest = memory.newest()
    step = newest.step if newest else 0
    while True:
        step += 1
        take(memory, image, step, torn_step)


for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        print(os.getpid(), flush=True)
        take_all(int(sys.argv[1]), int(line))
    print("ended", os.WTERMSIG(os.waitpid(pid, 0)[1]), flush=True)
