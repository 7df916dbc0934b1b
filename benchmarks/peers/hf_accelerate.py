"""Hugging Face Accelerate, as its documentation writes a training loop."""

from __future__ import annotations

import argparse
from collections.abc import Generator

from accelerate import Accelerator  # type: ignore[import-untyped]  # it publishes no types
from accelerate.utils import DistributedDataParallelKwargs  # type: ignore[import-untyped]  # the same
from images import train_loader
from pace import Rank, build_model, build_optimizer, ddp_options, run
from torch.nn import functional


def train(flags: argparse.Namespace, me: Rank) -> Generator[int]:
    """Epoch after epoch; the accuracy of each batch is counted, as ours does."""
    accelerator = Accelerator(
        cpu=me.device.type == "cpu",
        mixed_precision="bf16" if flags.precision == "bf16" else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(**_known(ddp_options(flags)))],
    )
    model = build_model(flags)
    if flags.compile:
        model.compile()
    model, optimizer, loader = accelerator.prepare(model, build_optimizer(flags, model), train_loader(flags, me, shard=False))
    correct = 0
    model.train()
    while True:
        for images, labels in loader:
            optimizer.zero_grad()
            outputs = model(images)
            loss = functional.cross_entropy(outputs, labels)
            accelerator.backward(loss)
            optimizer.step()
            correct += (outputs.argmax(1) == labels).sum()
            yield len(labels)


def _known(options: dict[str, bool]) -> dict[str, bool]:
    """Accelerate names DDP's arguments one by one, and knows the older name of one of them."""
    known = dict(options)
    if "forward_sync_buffers" in known:
        known["broadcast_buffers"] = known.pop("forward_sync_buffers")
    return known


if __name__ == "__main__":
    run("accelerate", train)
