"""The bare training loop with a checkpoint every n steps, by each way that torch and Lightning offer: what checkpoints.py sets beside ours.

    none          no checkpoints
    floor         a process beside it writes, hashes and syncs as many bytes; training goes on
    torch         torch.save, fsync, rename; training waits
    dcp-thread    torch.distributed.checkpoint.async_save, writing in a thread
    dcp-process   the same, writing in a process
    fabric        Lightning Fabric's save, as it is: it does not sync

Rank 0 notes each in `--stamps`: how long the call held training up, a wait for the one before included, and how long until it was written
(durable, for all but Fabric's). The batch is resident, so that nothing but the checkpoint differs from the bare loop.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pace import Rank, build_model, build_optimizer, ddp_options, run
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

FLOOR = Path(__file__).with_name("write_floor.py")
Written = Callable[[float], None]
"""To be called with the time at which the bytes were written."""
Save = Callable[[int, Written], None]
"""Save the state after a step; returns when training may go on."""


def train(flags: argparse.Namespace, me: Rank) -> Generator[int]:
    """Step for ever on one batch, saving on the way; yields after each step."""
    if me.world > 1 or flags.save_with.startswith("dcp"):
        _meet(me)
    model = build_model(flags).to(me.device)
    optimizer = build_optimizer(flags, model)
    ranks_model: nn.Module = DistributedDataParallel(model, **ddp_options(flags)) if me.world > 1 else model
    images = torch.randn(flags.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(flags.batch) % 10
    save = _saver(flags, me, model, optimizer)
    step = 0
    while True:
        with torch.autocast(me.device.type, torch.bfloat16, enabled=flags.precision == "bf16"):
            loss = functional.cross_entropy(ranks_model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if save is not None and step % flags.save_every == 0:
            _save_and_note(flags, me, save, step)
        yield len(labels)


def _save_and_note(flags: argparse.Namespace, me: Rank, save: Save, step: int) -> None:
    """One line per checkpoint, when both the call has returned and the bytes are written, in whichever order."""
    started, stall = time.perf_counter(), Future[float]()

    def note(at: float) -> None:
        line = {"step": step, "stall_seconds": stall.result(), "durable_seconds": at - started}
        if me.leads:
            with flags.stamps.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")

    save(step, lambda at: threading.Thread(target=note, args=(at,)).start())
    stall.set_result(time.perf_counter() - started)


def _saver(flags: argparse.Namespace, me: Rank, model: nn.Module, optimizer: torch.optim.Optimizer) -> Save | None:
    makers = {"floor": _floor, "torch": _torch, "dcp-thread": _dcp, "dcp-process": _dcp, "fabric": _fabric}
    if flags.save_with == "none" or (flags.save_with in {"floor", "torch", "fabric"} and not me.leads):
        return None
    return makers[flags.save_with](flags, model, optimizer)


def _floor(flags: argparse.Namespace, model: nn.Module, optimizer: torch.optim.Optimizer) -> Save:  # noqa: ARG001  # as the others
    size = sum(t.nbytes for t in model.state_dict().values()) + sum(p.nbytes for p in model.parameters())  # and one momentum each
    writer = subprocess.Popen([sys.executable, str(FLOOR), str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdin is not None
    assert writer.stdout is not None
    requests, answers = writer.stdin, writer.stdout

    def save(step: int, written: Written) -> None:  # noqa: ARG001
        began = time.perf_counter()
        requests.write(f"{flags.saves / 'floor.bin'}\n")
        requests.flush()
        threading.Thread(target=lambda: written(began + float(answers.readline()))).start()

    return save


def _torch(flags: argparse.Namespace, model: nn.Module, optimizer: torch.optim.Optimizer) -> Save:
    def save(step: int, written: Written) -> None:
        draft = flags.saves / "checkpoint.pt.draft"
        with draft.open("wb") as file:
            torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(flags.saves / "checkpoint.pt")
        written(time.perf_counter())

    return save


def _dcp(flags: argparse.Namespace, model: nn.Module, optimizer: torch.optim.Optimizer) -> Save:
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save

    kind = AsyncCheckpointerType(flags.save_with.removeprefix("dcp-"))
    before: Future[Any] | None = None

    def save(step: int, written: Written) -> None:
        nonlocal before
        if before is not None:
            before.result()  # one at a time, as its documentation asks
        weights, slots = get_state_dict(model, optimizer)
        shutil.rmtree(flags.saves / f"step-{step - 2 * flags.save_every}", ignore_errors=True)
        before = async_save(  # type: ignore[assignment]  # its other result is for stagers that are not used here
            {"model": weights, "optimizer": slots}, checkpoint_id=flags.saves / f"step-{step}", async_checkpointer_type=kind
        )
        before.add_done_callback(lambda _: written(time.perf_counter()))

    return save


def _fabric(flags: argparse.Namespace, model: nn.Module, optimizer: torch.optim.Optimizer) -> Save:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)

    def save(step: int, written: Written) -> None:
        fabric.save(flags.saves / "checkpoint.ckpt", {"step": step, "model": model, "optimizer": optimizer})
        written(time.perf_counter())

    return save


def _meet(me: Rank) -> None:
    if me.world == 1:  # async_save needs a group even for one rank; its port is any that is free
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group("gloo")


if __name__ == "__main__":
    run("savers", train)
