"""A rank's model and optimizer, made as the configuration says, at step 0."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from ddp_trainer.config import RunConfig
from ddp_trainer.distributed import Group
from ddp_trainer.engine.average import begin_average
from ddp_trainer.engine.precision import choose_dtype, compiles
from ddp_trainer.engine.schedule import count_steps
from ddp_trainer.engine.training import Training
from ddp_trainer.tasks.blank import build_model
from ddp_trainer.tasks.protocol import Dataset, Task


def build(
    config: RunConfig,
    task: Task,
    group: Group,
    train_set: Dataset,
    test_set: Dataset,
    micro_batches: int,
    *,
    is_blank: bool = False,
) -> Training:
    """Model, optimizer and wrapping for one rank, at step 0. `begin` must be called once the state is what it should be.

    Args:
        config: of the run.
        task: what is trained.
        group: of this rank.
        train_set: not yet on the device.
        test_set: likewise.
        micro_batches: in a global batch.
        is_blank: a saved state is about to be put in place, so values need not be drawn.

    Raises:
        ConfigError: compilation or bf16 was asked for and is not to be had.
    """
    torch.manual_seed(config.run.seed)
    layout = torch.channels_last if config.precision.channels_last else torch.contiguous_format
    model = build_model(task, is_blank=is_blank).to(group.device).to(memory_format=layout)
    torch.manual_seed(config.run.seed)  # what a user draws from here on is the same at a restart, which may have drawn less until here
    if compiles(config, group.device):
        model.compile()
    if group.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    return Training(
        config=config,
        task=task,
        group=group,
        model=model,
        ranks_model=model,
        optimizer=build_optimizer(config, model),
        ema=begin_average(model) if config.optim.ema_decay else {},
        train_set=train_set.to(group.device),
        test_set=test_set.to(group.device),
        dtype=choose_dtype(config, group.device),
        micro_batches=micro_batches,
        total_steps=count_steps(config, len(train_set)),
    )


def build_optimizer(config: RunConfig, model: nn.Module) -> Optimizer:
    """The configured optimizer, fused; weights of two or more dimensions decay, norms and biases do not."""
    optim, trained = config.optim, [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if optim.name == "adamw":
        return AdamW(groups, lr=optim.lr, betas=(optim.momentum, optim.beta2), fused=True)
    return SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=True)
