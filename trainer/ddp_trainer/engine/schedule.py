"""How long a run is, how fast it learns at each step, and when it evaluates: pure functions of the configuration."""

from __future__ import annotations

import math

from ddp_trainer.config import RunConfig

_SLACK = 1e-9
"""What a quotient of steps and samples may be off by, so that 0.1 x 50,000 / 50 is 100 and a third of an epoch ends three times in it."""


def count_steps(config: RunConfig, samples: int) -> int:
    """Optimizer steps of the whole run: the last global batch is filled up from the order of the epoch after the last."""
    steps = max(1, math.ceil(config.optim.epochs * samples / config.data.global_batch - _SLACK))
    return min(steps, config.optim.max_steps or steps)


def learning_rate(config: RunConfig, step: int, total_steps: int) -> float:
    """The rate for the step after `step` done ones: linear warm-up, then a cosine to `final_lr_ratio`."""
    optim = config.optim
    warmup_steps = math.floor(optim.warmup_ratio * total_steps)
    if step < warmup_steps:
        return optim.lr * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    floor = optim.final_lr_ratio
    return optim.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def evaluation_is_due(config: RunConfig, step: int, total_steps: int, steps_per_epoch: float) -> bool:
    """Whether `step` completed an evaluation interval, or the run."""
    interval = config.telemetry.eval_every_epochs * steps_per_epoch
    return step == total_steps or math.floor(step / interval + _SLACK) > math.floor((step - 1) / interval + _SLACK)
