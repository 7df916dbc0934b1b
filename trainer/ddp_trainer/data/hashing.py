"""Stateless randomness: 64 random bits as a function of (seed, purpose, epoch, index).

This is splitmix64 (Steele, Lea, Flood 2014) used as a counter-based generator: arithmetic modulo 2^64 and nothing else, so that a run
continued on another machine, device, world size or library version draws the same numbers, and nothing about randomness has to be
saved in a checkpoint. Not for secrets.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint64]

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""splitmix64's increment: the odd number nearest 2^64 / golden ratio."""
_EPOCH_GAMMA = np.uint64(0xD1342543DE82EF95)
"""Another odd multiplier, so that (epoch, index) and (index, epoch) never meet."""

ORDER, AUGMENT = np.uint64(1), np.uint64(2)
"""Purposes: the sample order and the augmentation draw from unrelated streams."""


def mix(bits: Bits) -> Bits:
    """splitmix64's finaliser: a bijection on 64 bits in which each input bit flips half of the output bits."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def random_bits(seed: int, purpose: np.uint64, epochs: NDArray[np.int64], indices: NDArray[np.int64]) -> Bits:
    """Random uint64, one per (epoch, index) pair; `epochs` and `indices` are int64 and broadcast against each other."""
    # arrays of one element, not scalars: numpy warns when a scalar wraps around, and wrapping is the point
    key = mix(np.array([seed], dtype=np.uint64) + purpose * np.ones(1, np.uint64) * GOLDEN_GAMMA)
    stream = mix(key + (epochs.astype(np.uint64) + np.uint64(1)) * _EPOCH_GAMMA)
    return mix(stream + (indices.astype(np.uint64) + np.uint64(1)) * GOLDEN_GAMMA)
