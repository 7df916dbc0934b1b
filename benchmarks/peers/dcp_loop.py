"""examples_imagenet.py with torch's distributed checkpoints, written in a process beside training: what torch offers for fewer steps lost.

`async_save` by all ranks every `SAVE_STEPS`; a save that has its `.metadata` is whole, and the newest such one is gone on from.
"""

from __future__ import annotations

import argparse
from collections.abc import Generator
from typing import Any

import torch
import torch.distributed as dist
from examples_imagenet import Save, train
from pace import Rank, run
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType


def train_with_dcp(flags: argparse.Namespace, me: Rank) -> Generator[int]:
    """As `train`, with other saves."""
    return train(flags, me, saves)


def saves(flags: argparse.Namespace, me: Rank, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, Save]:  # noqa: ARG001
    """The step of the newest whole save, which is loaded, and what makes the next ones."""
    whole = (folder for folder in flags.resume.glob("step-*") if (folder / ".metadata").is_file())
    newest = [max((int(folder.name.removeprefix("step-")) for folder in whole), default=0)]
    dist.broadcast_object_list(newest)  # a process that outlives its rank may still finish a save between two ranks' looks
    step = newest[0]
    before: Any = None

    def save(step: int) -> None:
        nonlocal before
        if before is not None:
            before.result()  # one at a time, as its documentation asks
        weights, slots = get_state_dict(model, optimizer)
        kind = AsyncCheckpointerType.PROCESS
        before = checkpoint.async_save(
            {"model": weights, "optimizer": slots}, checkpoint_id=flags.resume / f"step-{step}", async_checkpointer_type=kind
        )

    if step:
        weights, slots = get_state_dict(model, optimizer)
        checkpoint.load({"model": weights, "optimizer": slots}, checkpoint_id=flags.resume / f"step-{step}")
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=slots)
    return step, save


if __name__ == "__main__":
    run("dcp_loop", train_with_dcp)
