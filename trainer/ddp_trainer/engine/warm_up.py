"""The throw-away backward pass between a rank's state and its first step."""

from __future__ import annotations

import torch

from ddp_trainer.engine.rehearsal import arrivals, is_whole, rehearse
from ddp_trainer.engine.step import backward, forward
from ddp_trainer.engine.training import Training
from ddp_trainer.exchange.gradient_sum import GradientSum
from ddp_trainer.exchange.piggyback import Piggyback, Words

WARM_UP_SAMPLES = 2
"""Samples of the throw-away backward: the fewest with which a norm layer over 1 x 1 pixels has a variance."""


def begin(run: Training) -> None:
    """Wrap the model, which is the same on all ranks, and run one throw-away backward, leaving the state as it was.

    DDP orders its buckets anew after the first backward, by the order in which gradients arrived, which changes the order of summation,
    where that is the backend's (in memory it is the ranks'). Without this, a resumed run would then differ in the last bits from the one
    that was not disturbed, at more than two ranks. A run that knows the order from its past (`run.gradient_order`) needs no forward pass
    and no exchange for it; else it is noted for the next restart.
    """
    if run.group.world_size == 1:
        return
    run.words = Piggyback(run.model, run.group.rank, run.group.world_size, run.group.device)
    exchange = GradientSum()
    run.ranks_model = run.group.wrap(run.words, exchange)
    if run.config.precision.compile == "off" and is_whole(run.gradient_order, run.model):
        with exchange.muted(), run.words.with_stand_in(lambda: rehearse(run.gradient_order, run.model)):
            # on a GPU, DDP moves inputs to the device and takes it ill if there are none
            backward(run, run.ranks_model(torch.zeros((), device=run.group.device)), Words())
    else:
        with arrivals(run.model) as order:
            _throw_away_one_batch(run)
        run.gradient_order = run.group.share_json(order)
    run.ranks_model.zero_grad(set_to_none=True)


def _throw_away_one_batch(run: Training) -> None:
    size = run.config.data.global_batch // run.micro_batches
    size = size if run.config.precision.compile != "off" else min(size, WARM_UP_SAMPLES)  # another shape would compile again
    buffers = [buffer.clone() for buffer in run.model.buffers()]
    indices = torch.arange(size) % len(run.train_set)
    run.ranks_model.train()
    inputs, targets = run.train_set.batch(indices, torch.zeros_like(indices))
    loss, _ = forward(run, inputs, targets)
    backward(run, loss, Words())
    with torch.no_grad():
        for buffer, saved in zip(run.model.buffers(), buffers, strict=True):
            buffer.copy_(saved)
