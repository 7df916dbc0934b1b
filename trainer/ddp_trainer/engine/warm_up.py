"""The throw-away backward pass between a rank's state and its first step."""

from __future__ import annotations

import torch

from ddp_trainer.engine.step import backward, forward
from ddp_trainer.engine.training import Training
from ddp_trainer.piggyback import Piggyback, Words

WARM_UP_SAMPLES = 2
"""Samples of the throw-away backward: the fewest with which a norm layer over 1 x 1 pixels has a variance."""


def begin(run: Training) -> None:
    """Wrap the model, which is the same on all ranks, and run one throw-away backward, leaving the state as it was.

    DDP orders its buckets anew after the first backward, which changes the order of summation. Without this, a resumed run would
    differ in the last bits from the undisturbed one, at more than two ranks.
    """
    if run.group.world_size == 1:
        return
    run.words = Piggyback(run.model, run.group.rank, run.group.world_size, run.group.device)
    run.ranks_model = run.group.wrap(run.words)
    size = run.config.data.global_batch // run.micro_batches
    size = size if run.config.precision.compile != "off" else min(size, WARM_UP_SAMPLES)  # another shape would compile again
    buffers = [buffer.clone() for buffer in run.model.buffers()]
    indices = torch.arange(size) % len(run.train_set)
    run.ranks_model.train()
    inputs, targets = run.train_set.batch(indices, torch.zeros_like(indices))
    loss, _ = forward(run, inputs, targets)
    backward(run, loss, Words())
    run.ranks_model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, saved in zip(run.model.buffers(), buffers, strict=True):
            buffer.copy_(saved)
