"""In which precision everybody trains here: the one that ours chooses by itself on this machine's cores."""

from __future__ import annotations

import functools

import torch

from ddp_trainer.config import RunConfig
from ddp_trainer.engine.precision import choose_dtype


@functools.cache
def native_precision() -> str:
    """`bf16` where the cores compute in it, else `fp32`: a peer that emulates bf16 would be slow for no fault of its own."""
    return "bf16" if choose_dtype(RunConfig(), torch.device("cpu")) is torch.bfloat16 else "fp32"
