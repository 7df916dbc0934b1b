"""Whether a step's arithmetic stayed finite, found at small cost, and what is said where it did not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddp_trainer.config import RunConfig
from ddp_trainer.errors import DivergedError


def probes_of(model: nn.Module) -> list[Tensor]:
    """The parameters whose gradients tell whether all are finite: the first and the last, and every norm and bias.

    Whatever is not finite in a backward pass reaches the layers before it, and so one of these. All 24 million of a ResNet-50's would
    cost a twentieth of a step.
    """
    trained: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    return [p for i, p in enumerate(trained) if p.ndim <= 1 or i in {0, len(trained) - 1}]


def finite_gradients(probes: list[Tensor]) -> Tensor:
    """Whether the gradients of all probes are finite: bool [] on the device."""
    gradients = [p.grad for p in probes if p.grad is not None]
    return torch.stack(torch._foreach_norm(gradients)).isfinite().all()  # noqa: SLF001  # public in spirit: torch.nn.utils' clipping


def diverged(config: RunConfig, place: str, window: tuple[int, int]) -> DivergedError:
    """The error to raise; `place` says which step (and rank) it was, `window` the 0-based steps: (first, one after the last)."""
    return DivergedError(
        f"the loss or its gradient is not finite {place}; lower optim.lr (now {config.optim.lr}) "
        f"or lengthen optim.warmup_ratio; the last checkpoint is good",
        window=window,
    )
