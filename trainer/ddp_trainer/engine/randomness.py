"""Whatever a user's code draws (dropout, its own noise) is a function of seed, step and place, so there is nothing to save."""

from __future__ import annotations

import random

import numpy as np
import torch

_STRIDE = 1_000_003
"""Separates the seeds of neighbouring steps; any number larger than the places of a step does."""
EVALUATION_PLACE = 500_000
"""Where the places of an evaluation begin: behind all micro-batches."""


def seed_generators(seed: int, step: int, place: int) -> None:
    """Seed the global generators of torch (all devices), Python and numpy for one micro-batch, or one batch of an evaluation.

    Args:
        seed: of the run.
        step: 0-based, or the number of steps done before an evaluation.
        place: the micro-batch's number in the global batch, or `EVALUATION_PLACE` and the first sample of an evaluation's batch.
    """
    key = (seed * _STRIDE + step) * _STRIDE + place
    torch.manual_seed(key % 2**64)
    random.seed(key)
    np.random.seed(key % 2**32)  # noqa: NPY002  # the global generator is what other people's code uses
