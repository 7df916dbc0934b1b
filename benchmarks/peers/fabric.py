"""Lightning Fabric, as its documentation writes a training loop."""

from __future__ import annotations

import argparse
from collections.abc import Generator

from images import train_loader
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from pace import Rank, build_model, build_optimizer, ddp_options, run
from torch.nn import functional


def train(flags: argparse.Namespace, me: Rank) -> Generator[int]:
    """Epoch after epoch; the accuracy of each batch is counted, as ours does."""
    fabric = Fabric(
        accelerator=me.device.type,
        devices=me.world,
        strategy=DDPStrategy(**ddp_options(flags)) if me.world > 1 else "auto",
        precision="bf16-mixed" if flags.precision == "bf16" else "32-true",
    )
    fabric.launch()
    model = build_model(flags)
    if flags.compile:
        model.compile()
    model, optimizer = fabric.setup(model, build_optimizer(flags, model))
    loader = fabric.setup_dataloaders(train_loader(flags, me, shard=False))
    correct = 0
    model.train()
    while True:
        for images, labels in loader:
            optimizer.zero_grad()
            outputs = model(images)
            loss = functional.cross_entropy(outputs, labels)
            fabric.backward(loss)
            optimizer.step()
            correct += (outputs.argmax(1) == labels).sum()
            yield len(labels)


if __name__ == "__main__":
    run("fabric", train)
