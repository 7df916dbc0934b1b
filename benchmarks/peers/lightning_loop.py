"""A run of Lightning's Trainer under torchrun that saves every few steps and goes on from the last save, as its documentation has it.

`--stamps FILE` notes rank, process and step after each step, for recovery.py; the flags are those of the other peers.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

import torch
from images import train_loader
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from pace import Rank, build_model, build_optimizer, parse
from torch import Tensor
from torch.nn import functional

SAVE_STEPS = 5


class Module(LightningModule):
    """ResNet with the optimizer of all peers."""

    def __init__(self, flags: argparse.Namespace) -> None:
        super().__init__()
        self._flags = flags
        self.model = build_model(flags)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Loss of a batch."""
        images, labels = batch
        return functional.cross_entropy(self.model(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return build_optimizer(self._flags, self.model)


class Stamps(Callback):
    """Notes each step."""

    def __init__(self, flags: argparse.Namespace) -> None:
        self._file = flags.stamps

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """A step is done."""
        mark = {"what": "step", "rank": int(os.environ["RANK"]), "pid": os.getpid(), "step": trainer.global_step, "time": time.time()}
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(mark) + "\n")


def main() -> None:
    """Train until stopped."""
    flags = parse("lightning_loop")
    torch.set_num_threads(flags.threads)
    me = Rank(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), torch.device("cpu"))
    save = ModelCheckpoint(dirpath=flags.resume, every_n_train_steps=SAVE_STEPS, save_last=True, save_top_k=1)
    trainer = Trainer(
        accelerator="cpu",
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        num_nodes=int(os.environ["GROUP_WORLD_SIZE"]),
        strategy="ddp",
        precision="bf16-mixed" if flags.precision == "bf16" else "32-true",
        max_epochs=10**9,
        callbacks=[save, Stamps(flags)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = flags.resume / "last.ckpt"
    trainer.fit(Module(flags), train_loader(flags, me, shard=False), ckpt_path=str(last) if last.is_file() else None)


if __name__ == "__main__":
    main()
