"""What the ranks of the tests of stacks do: two of them in a real gloo group, one of which does not come to the collective."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_trainer.config import RunConfig
from ddp_trainer.distributed import Group, Meeting, Place
from ddp_trainer.resilience import stacks


def main(how: str, rank: int, trace: str, meeting: str) -> int:
    stacks.arm(Path(trace))
    {"meeting": meets, "backward": trains}.get(how, reduces)(how, rank, meeting)
    return 0


def join(rank: int, meeting: str) -> None:
    store = dist.FileStore(meeting, 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=600))


def say_ready(meeting: str, rank: int) -> None:
    Path(f"{meeting}.ready-{rank}").touch()


def trains(how: str, rank: int, meeting: str) -> None:
    join(rank, meeting)
    model = DistributedDataParallel(nn.Linear(4, 4))
    model(torch.ones(2, 4)).sum().backward()
    loss = model(torch.ones(2, 4)).sum()
    say_ready(meeting, rank)
    if rank == 1:
        users_code()
    loss.backward()


def reduces(how: str, rank: int, meeting: str) -> None:
    join(rank, meeting)
    say_ready(meeting, rank)
    if rank == 1:
        users_code()
    tensor = torch.ones(2)
    {
        "all_reduce": lambda: dist.all_reduce(tensor),
        "all_gather": lambda: dist.all_gather([torch.empty(2), torch.empty(2)], tensor),
        "broadcast": lambda: dist.broadcast(tensor, src=1),
        "barrier": dist.barrier,
        "construction": lambda: DistributedDataParallel(nn.Linear(4, 4)),
    }[how]()


def meets(how: str, rank: int, meeting: str) -> None:
    """Rank 0 waits in our own code for the other one to join."""
    if rank == 1:
        say_ready(meeting, rank)
        users_code()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    say_ready(meeting, rank)
    config, place = RunConfig(distributed={"device": "cpu"}), Place(0, 2, 0, 2, "127.0.0.1", store.port, "here")
    Group.join(config, place, Meeting(config, place))


def users_code() -> None:
    while True:
        time.sleep(3600)
