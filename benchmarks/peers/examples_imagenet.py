"""A training loop in the manner of pytorch/examples' imagenet script: DataLoader workers, DDP, meters read every step.

Written for this benchmark after that script's structure, not copied. It moves each batch to the device, steps, reads loss and top-1/top-5
back (which it does every batch, too) and prints a line every ten. With `--resume FOLDER` it saves every `SAVE_STEPS` and goes on from the
last save: what a torchrun user does, for startup.py and recovery.py. dcp_loop.py is the same with other saves.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path

import torch
import torch.distributed as dist
from images import train_loader
from pace import Rank, build_model, build_optimizer, ddp_options, run
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

PRINT_STEPS = 10
SAVE_STEPS = 5
"""Steps between saves with `--resume`: often enough that a restart has something to go on from."""


Save = Callable[[int], None]
"""To be called by all ranks after every `SAVE_STEPS`, with the step."""


def train(flags: argparse.Namespace, me: Rank, saves: Callable[..., tuple[int, Save]] | None = None) -> Generator[int]:
    """Epoch after epoch; yields after each step. `saves(flags, me, model, optimizer)` resumes, and gives the step and what saves."""
    if me.world > 1:
        dist.init_process_group("nccl" if me.device.type == "cuda" else "gloo")
    model = build_model(flags).to(me.device)
    if flags.compile:
        model.compile()
    ranks_model = DistributedDataParallel(model, **ddp_options(flags)) if me.world > 1 else model
    optimizer = build_optimizer(flags, model)
    loader = train_loader(flags, me, shard=True)
    step, save = (saves or inline)(flags, me, model, optimizer) if flags.resume else (0, None)
    _stamp(flags.stamps, me, "ready", step)
    for epoch in range(step // len(loader), 2**31):
        if isinstance(loader.sampler, DistributedSampler):
            loader.sampler.set_epoch(epoch)
        ranks_model.train()
        for images, labels in loader:
            loss, top1, top5 = _step(flags, ranks_model, optimizer, images.to(me.device), labels.to(me.device))
            step += 1
            _stamp(flags.stamps, me, "step", step)
            if step % PRINT_STEPS == 0 and not flags.control:
                print(f"epoch {epoch} step {step} loss {loss:.3f} acc@1 {top1:.1f} acc@5 {top5:.1f}", flush=True)
            if save and step % SAVE_STEPS == 0:
                save(step)
            yield len(labels)


def _step(
    flags: argparse.Namespace, model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> tuple[float, float, float]:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=flags.precision == "bf16"):
        outputs = model(images)
        loss = nn.functional.cross_entropy(outputs, labels)
    hits = outputs.topk(5, dim=1).indices == labels[:, None]
    top1, top5 = hits[:, 0].float().mean() * 100, hits.any(dim=1).float().mean() * 100
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), top1.item(), top5.item()


def inline(flags: argparse.Namespace, me: Rank, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, Save]:
    """`torch.save` by rank 0 while the others wait; the newest is loaded on every rank."""
    file, step = flags.resume / "checkpoint.pth.tar", 0

    def save(step: int) -> None:
        if me.leads:
            draft = file.with_suffix(".draft")
            torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, draft)
            draft.replace(file)

    if file.is_file():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = int(state["step"])
    return step, save


def _stamp(file: Path | None, me: Rank, what: str, step: int) -> None:
    if file is not None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"what": what, "rank": me.rank, "pid": os.getpid(), "step": step, "time": time.time()}) + "\n")


if __name__ == "__main__":
    run("examples_imagenet", train)
