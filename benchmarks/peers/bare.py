"""The compute limit: forward, backward and optimizer step on one batch that is already there.

No data, no metrics, no gradient exchange: what is left is what the network costs on this machine, and nobody can be faster with the same
arithmetic. At `--world N` it is N such processes side by side.
"""

from __future__ import annotations

import argparse
from collections.abc import Generator

import torch
from pace import Rank, build_model, build_optimizer, run
from torch.nn import functional


def train(flags: argparse.Namespace, me: Rank) -> Generator[int]:
    """Step on the same random images for ever."""
    model = build_model(flags).to(me.device).train()
    if flags.compile:
        model.compile()
    optimizer = build_optimizer(flags, model)
    layout = torch.channels_last if flags.channels_last else torch.contiguous_format
    images = torch.randn(flags.batch, 3, 32, 32, device=me.device).contiguous(memory_format=layout)
    labels = torch.randint(10, (flags.batch,), device=me.device)
    while True:
        with torch.autocast(me.device.type, torch.bfloat16, enabled=flags.precision == "bf16"):
            loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield flags.batch


if __name__ == "__main__":
    run("bare", train)
